"""Requests from the workspace to the control plane, which has no other way in: it polls for them."""

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

SETTLE_TIMEOUT_S = 58.0
"""The E2B SDK gives its command 60 s."""

MAX_WAITING = 16


@dataclass
class ConfigurationRequest:
    """What `mcp-gateway --config` or `pull` in the workspace asks for."""

    id: str
    body: dict[str, Any] = field(repr=False)
    settled: "asyncio.Future[tuple[bool, str | None]]"


class TooManyRequestsError(Exception):
    """MAX_WAITING requests wait already."""


class ConfigurationRequests:
    """Those that wait to be settled, oldest first."""

    def __init__(self) -> None:
        self._waiting: dict[str, ConfigurationRequest] = {}
        self._ids = itertools.count(1)
        self._arrived = asyncio.Event()

    async def submit(self, body: dict[str, Any]) -> tuple[bool, str | None]:
        """(ok, message) as the control plane settled it. Raises: TimeoutError if nobody did, TooManyRequestsError."""
        if len(self._waiting) >= MAX_WAITING:
            raise TooManyRequestsError
        request = ConfigurationRequest(f"r{next(self._ids)}", body, asyncio.get_running_loop().create_future())
        self._waiting[request.id] = request
        self._arrived.set()
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                return await request.settled
        finally:
            del self._waiting[request.id]
            if not self._waiting:
                self._arrived.clear()

    async def waiting(self, wait_s: float) -> list[dict[str, Any]]:
        """Every request not settled yet; waits for one at most `wait_s`. A poll that got lost loses none."""
        try:
            async with asyncio.timeout(wait_s):
                await self._arrived.wait()
        except TimeoutError:
            return []
        return [{"id": request.id, **request.body} for request in self._waiting.values()]

    def settle(self, identifier: str, ok: bool, message: str | None) -> bool:
        """False if nobody waits for it (any more)."""
        request = self._waiting.get(identifier)
        if request is None or request.settled.done():
            return False
        request.settled.set_result((ok, message))
        return True
