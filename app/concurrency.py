"""Several pieces of work side by side, for callers that know single errors only."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def all_of(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run `work` side by side.

    When a piece fails the others are cancelled; once they have ended, the first error is raised, alone.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for piece in work:
                group.create_task(piece)
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
    else:
        return
    raise first
