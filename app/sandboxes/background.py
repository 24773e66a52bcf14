"""Owns the tasks that go on behind answers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

import structlog

_log = structlog.get_logger()


class Background:
    """Use as a context manager: at its end everything that was spawned is cancelled."""

    def __init__(self) -> None:
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.__aexit__(kind, error, trace)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._tasks.create_task(_guarded(work, name), name=name)
        # Of a task that was cancelled before its first step nothing has run; elsewhere this does nothing.
        task.add_done_callback(lambda _: work.close())
        return task


async def _guarded(work: Coroutine[Any, Any, None], name: str) -> None:
    """One sandbox's trouble must not end the work on all others, as an exception in a task group would."""
    try:
        await work
    except Exception:  # noqa: BLE001 - logged here, repaired by the next sweep
        _log.exception("task_failed", task=name)
