"""Resuming paused sandboxes because traffic comes for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from app.edge.answers import Refusal, in_transition, not_found
from app.errors import Conflict, NotFound, Problem

TIMEOUT_S = 55.0
"""Less than the 60 s after which E2B's SDKs give a request up."""

_log = structlog.get_logger()

Resume = Callable[[str], Awaitable[None]]
"""Resumes a sandbox and returns once it can be reached; one that runs already is left alone. Raises: Problem."""


Spawn = Callable[[Coroutine[Any, Any, Refusal | None]], asyncio.Task[Refusal | None]]
"""Starts a task whose end its owner waits for."""


class Waker:
    """Resumes a sandbox once, however many requests wait for it."""

    def __init__(self, resume: Resume, spawn: Spawn, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._resume = resume
        self._spawn = spawn
        self._waking: dict[str, asyncio.Task[Refusal | None]] = {}

    async def wake(self, sandbox_id: str) -> Refusal | None:
        """Returns once the sandbox can be reached, or why it cannot. A request that is given up ends only itself."""
        waking = self._waking.get(sandbox_id)
        if waking is None:
            waking = self._waking[sandbox_id] = self._spawn(self._wake(sandbox_id))
            waking.add_done_callback(lambda _: self._waking.pop(sandbox_id))
        return await asyncio.shield(waking)

    async def _wake(self, sandbox_id: str) -> Refusal | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._resume(sandbox_id)
        except (TimeoutError, Conflict):
            return in_transition(sandbox_id)
        except NotFound:
            return not_found(sandbox_id)
        except Problem as problem:
            _log.warning("sandbox_not_resumed", sandbox_id=sandbox_id, reason=problem.message)
            return Refusal(problem.status, problem.message, sandbox_id)
        return None
