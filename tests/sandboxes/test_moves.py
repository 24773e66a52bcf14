"""One task at a time moves a sandbox, and whoever asked for it hears of its end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from app.errors import Conflict
from app.sandboxes.moves import Moves
from tests.waiting import BOUND_S


async def test_a_move_that_is_ended_before_its_first_step_is_answered() -> None:
    begun = False

    async def work() -> None:
        nonlocal begun
        begun = True

    async with asyncio.TaskGroup() as group:

        def spawn(task: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
            spawned = group.create_task(task, name=name)
            # Nothing of it runs before the end, as when a kill comes in the same turn of the event loop.
            spawned.cancel()
            spawned.add_done_callback(lambda _: task.close())
            return spawned

        with pytest.raises(Conflict):
            async with asyncio.timeout(BOUND_S):
                await Moves(spawn).run("i1", work, name="start")
    assert not begun
