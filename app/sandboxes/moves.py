"""One task at a time moves a sandbox: starts, pauses, resumes or saves it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from app.errors import Conflict

T = TypeVar("T")

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class Moves:
    def __init__(self, spawn: Spawn) -> None:
        """`spawn` starts a task under its name, and owns it."""
        self._spawn = spawn
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ended: set[str] = set()

    async def run(self, sandbox_id: str, work: Callable[[], Coroutine[Any, Any, T]], *, name: str) -> T:
        """Do `work` once no other work moves the sandbox. It goes on if the caller goes away.

        Raises: Conflict if the sandbox was told to stop, before or meanwhile; what `work` raises.
        """
        await self.until_still(sandbox_id)
        if sandbox_id in self._ended:
            raise _stopped(sandbox_id)
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        # The caller may be gone by the time the work fails; then nobody asks for the failure.
        outcome.add_done_callback(lambda done: done.cancelled() or done.exception())
        task = self._running[sandbox_id] = self._spawn(_settle(sandbox_id, work, outcome), f"{name} {sandbox_id}")

        def ended(_: asyncio.Task[None]) -> None:
            self._running.pop(sandbox_id, None)
            if not outcome.done():  # cancelled before its first step, which runs none of it
                outcome.set_exception(_stopped(sandbox_id))

        task.add_done_callback(ended)
        return await asyncio.shield(outcome)

    async def until_still(self, sandbox_id: str) -> None:
        while (task := self._running.get(sandbox_id)) is not None:
            await asyncio.wait([task])

    def is_moving(self, sandbox_id: str) -> bool:
        return sandbox_id in self._running

    async def end(self, sandbox_id: str) -> None:
        """Cancel what moves the sandbox and let nothing move it again; returns once that has ended."""
        self._ended.add(sandbox_id)
        if (task := self._running.get(sandbox_id)) is not None:
            task.cancel()
            await asyncio.wait([task])

    def forget(self, sandbox_id: str) -> None:
        """The sandbox is gone; ids are never used again."""
        self._ended.discard(sandbox_id)


async def _settle(sandbox_id: str, work: Callable[[], Coroutine[Any, Any, T]], outcome: asyncio.Future[T]) -> None:
    try:
        result = await work()
    except asyncio.CancelledError:
        # Told to stop, or the control plane ends: in both cases the row says what is to be done next.
        if not outcome.done():
            outcome.set_exception(_stopped(sandbox_id))
        raise
    except Exception as error:  # noqa: BLE001 - it is the caller's to handle, whatever it is
        if not outcome.done():
            outcome.set_exception(error)
    else:
        if not outcome.done():
            outcome.set_result(result)


def _stopped(sandbox_id: str) -> Conflict:
    return Conflict(f"Sandbox {sandbox_id} was stopped meanwhile.")
