"""Images of snapshots and forks: none is made for nothing, and none that is left over stays."""

from __future__ import annotations

import asyncio

import pytest

from app.engines.in_memory_engine import InMemoryEngine
from app.errors import Conflict, InvalidRequest
from tests.in_process import IMAGES, Clock, ControlPlane, StartControlPlane, request
from tests.template_room import NAMESPACE
from tests.waiting import BOUND_S


class EngineSlowToSave(InMemoryEngine):
    """Finishes an image even if nobody waits for it any more, as container engines do."""

    def __init__(self) -> None:
        super().__init__(IMAGES, address_of=lambda spec: f"{spec.pod_id}.pod")
        self.saving: list[str] = []
        self.has_begun = asyncio.Event()

    async def snapshot(self, pod_id: str, role: str, image: str) -> None:
        self.saving.append(image)
        self.has_begun.set()
        await asyncio.Event().wait()

    async def finish(self) -> None:
        for image in self.saving:
            await self.builds.name_image("workspace:1", image)


async def saved(engine: InMemoryEngine) -> set[str]:
    return {image.name for kind in ("template", "fork") for image in await engine.builds.images(f"{NAMESPACE}/{kind}")}


async def until_saved_are(wanted: set[str], control_plane: ControlPlane, engine: InMemoryEngine) -> None:
    control_plane.templates.builder.sweep_soon()
    async with asyncio.timeout(BOUND_S):
        while await saved(engine) != wanted:
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("name", ["Not A Name!", "base", "a:b:c", "another-team/name"])
async def test_nothing_is_saved_under_a_name_that_is_none(
    control_plane: ControlPlane, engine: InMemoryEngine, name: str
) -> None:
    sandbox = (await control_plane.service.create(control_plane.team_id, request())).sandbox
    with pytest.raises(InvalidRequest):
        await control_plane.service.snapshot(control_plane.team_id, sandbox.id, name)
    assert await saved(engine) == set()


async def test_nothing_is_saved_under_the_name_of_a_template(
    control_plane: ControlPlane, engine: InMemoryEngine
) -> None:
    sandbox = (await control_plane.service.create(control_plane.team_id, request())).sandbox
    await control_plane.templates.request_build(control_plane.team_id, "web", cpus=None, memory_mib=None)
    with pytest.raises(InvalidRequest, match="is that of a template"):
        await control_plane.service.snapshot(control_plane.team_id, sandbox.id, "web")
    assert await saved(engine) == set()


async def test_an_image_that_was_saved_when_nobody_waited_any_more_is_removed(
    start_control_plane: StartControlPlane, clock: Clock
) -> None:
    engine = EngineSlowToSave()
    async with start_control_plane(engine=engine) as first:
        sandbox = (await first.service.create(first.team_id, request(timeout_s=36000))).sandbox
        snapshot = asyncio.create_task(first.service.snapshot(first.team_id, sandbox.id, None))
        async with asyncio.timeout(BOUND_S):
            await engine.has_begun.wait()
        await first.service.kill(first.team_id, sandbox.id)
        with pytest.raises(Conflict):
            await snapshot
        engine.has_begun.clear()
        forked = (await first.service.create(first.team_id, request(timeout_s=36000))).sandbox
        fork = asyncio.create_task(first.service.fork(first.team_id, forked.id, count=1, timeout_s=60))
        async with asyncio.timeout(BOUND_S):
            await engine.has_begun.wait()
        await first.service.kill(first.team_id, forked.id)
        with pytest.raises(Conflict):
            await fork
    await engine.finish()
    async with start_control_plane(engine=engine) as second:
        assert await saved(engine) == set(engine.saving)
        clock.advance(hours=2)
        await until_saved_are(set(), second, engine)


async def test_an_image_that_is_recorded_stays(
    control_plane: ControlPlane, engine: InMemoryEngine, clock: Clock
) -> None:
    team_id = control_plane.team_id
    sandbox = (await control_plane.service.create(team_id, request(timeout_s=36000))).sandbox
    await control_plane.service.snapshot(team_id, sandbox.id, "mine")
    await control_plane.service.fork(team_id, sandbox.id, count=1, timeout_s=36000)
    recorded = await saved(engine)
    assert len(recorded) == 2
    await engine.builds.name_image("workspace:1", f"{NAMESPACE}/fork:lost")
    clock.advance(hours=2)
    await until_saved_are(recorded, control_plane, engine)
