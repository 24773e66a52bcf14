"""A start of a pod under way: what it still has running in threads, and how it is ended from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import docker

from app.engines.docker_client import DockerClient
from app.errors import EngineError

T = TypeVar("T")


class PodStart:
    """The calls of one start to the engine. They outlive its cancellation, so it has ended only once it is settled."""

    def __init__(self, client: DockerClient, pod_id: str, *, on_settled: Callable[[], None]) -> None:
        self.pod_id = pod_id
        self._client = client
        self._running: set[asyncio.Future[Any]] = set()
        self._is_abandoned = False
        self._has_ended = False
        self._settled = asyncio.Event()
        self._on_settled = on_settled

    async def call(self, work: Callable[[docker.APIClient], T], *, doing: str, image: str = "") -> T:
        """As DockerClient.call. Raises EngineError once the start is abandoned."""
        if self._is_abandoned:
            raise EngineError(f"Pod {self.pod_id} was stopped while it was being started.")
        doing = f"start pod {self.pod_id}: {doing}"
        future = self._client.submit(work, doing=doing, image=image)
        self._running.add(future)
        future.add_done_callback(self._one_done)
        # Shielded, because cancelling the future would hide that its thread goes on.
        return await self._client.bounded(asyncio.shield(future), doing=doing)

    def abandon(self) -> None:
        self._is_abandoned = True

    def end(self) -> None:
        self._has_ended = True
        self._settle()

    async def settled(self) -> None:
        """Returns once the start has ended and none of its threads is at work; they are bounded by the client."""
        await self._settled.wait()

    def _one_done(self, future: asyncio.Future[Any]) -> None:
        self._running.discard(future)
        if not future.cancelled():
            future.exception()  # whoever waited for it may be gone; nobody is left to hear of it
        self._settle()

    def _settle(self) -> None:
        if self._has_ended and not self._running:
            self._settled.set()
            self._on_settled()
