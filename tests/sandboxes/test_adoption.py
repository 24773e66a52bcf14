"""Soon after a start: sandboxes that are alive and not taken up yet are never said to be gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from app.engines.in_memory_engine import InMemoryEngine
from app.errors import EngineAway, NotFound
from app.sandboxes.models import Lifecycle, PauseMode
from tests.in_process import ControlPlane, StartControlPlane, request
from tests.waiting import until

Verb = Callable[[ControlPlane, str], Awaitable[object]]

VERBS: dict[str, Verb] = {
    "connect": lambda plane, sandbox_id: plane.service.connect(plane.team_id, sandbox_id, 60),
    "traffic": lambda plane, sandbox_id: plane.service.resume_for_traffic(sandbox_id),
    "snapshot": lambda plane, sandbox_id: plane.service.snapshot(plane.team_id, sandbox_id, None),
    "network": lambda plane, sandbox_id: plane.service.set_network(plane.team_id, sandbox_id, {}),
    "servers": lambda plane, sandbox_id: plane.service.change_servers(plane.team_id, sandbox_id, {}, None),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
async def test_a_sandbox_is_not_gone_because_the_engine_is_away_at_a_start(
    start_control_plane: StartControlPlane, engine: InMemoryEngine, verb: Verb
) -> None:
    async with start_control_plane() as first:
        asked = request(mcp={}, lifecycle=Lifecycle(auto_resume=True))
        sandbox_id = (await first.service.create(first.team_id, asked)).sandbox.id
        await first.service.pause(first.team_id, sandbox_id, PauseMode.MEMORY)
    engine.is_away = True
    async with start_control_plane() as second:
        with pytest.raises(EngineAway):
            await verb(second, sandbox_id)
        with pytest.raises(NotFound):
            await verb(second, "inever")
        engine.is_away = False
        await until(lambda: not second.directory.awaited)
        _, was_resumed = await second.service.connect(second.team_id, sandbox_id, 60)
        assert was_resumed


async def test_a_sandbox_that_is_killed_before_it_is_taken_up_is_gone(
    start_control_plane: StartControlPlane, engine: InMemoryEngine
) -> None:
    async with start_control_plane() as first:
        sandbox_id = (await first.service.create(first.team_id, request())).sandbox.id
    engine.is_away = True
    async with start_control_plane() as second:
        assert set(second.directory.awaited) == {sandbox_id}
        await second.service.kill(second.team_id, sandbox_id)
        assert not second.directory.awaited
        with pytest.raises(NotFound):
            await second.service.resume_for_traffic(sandbox_id)
