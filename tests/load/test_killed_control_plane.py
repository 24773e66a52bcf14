"""A control plane is killed at every step of every verb, and the next one finds nothing half-made."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from app.engines.in_memory_engine import InMemoryEngine
from app.errors import Problem
from app.sandboxes.models import PauseMode, Sandbox
from tests.in_process import IMAGES, ControlPlane, StartControlPlane, request
from tests.load.consistency import assert_no_pod_had_two_sandboxes, until_consistent
from tests.pods import PodTransport

Verb = Callable[[ControlPlane, Sandbox], Awaitable[object]]


class EngineThatStopsTheWorld(InMemoryEngine):
    """Answers a number of steps; then it sets `is_over` and leaves everybody without an answer until `go_on`."""

    def __init__(self) -> None:
        super().__init__(IMAGES, address_of=lambda spec: f"{spec.pod_id}.pod")
        self.is_over = asyncio.Event()
        self._left: int | None = None

    def stop_after(self, steps: int) -> None:
        self._left = steps

    def go_on(self) -> None:
        self._left = None
        self.is_over.clear()

    async def _answer(self, doing: str) -> None:
        await super()._answer(doing)
        if self._left is None:
            return
        if self._left == 0:
            self.is_over.set()
            await asyncio.Event().wait()
        self._left -= 1


async def paused(control_plane: ControlPlane, sandbox: Sandbox) -> None:
    with suppress(Problem):  # it is
        await control_plane.service.pause(control_plane.team_id, sandbox.id, PauseMode.MEMORY)


async def create(control_plane: ControlPlane, sandbox: Sandbox) -> object:
    return await control_plane.service.create(control_plane.team_id, request())


async def create_with_servers(control_plane: ControlPlane, sandbox: Sandbox) -> object:
    return await control_plane.service.create(control_plane.team_id, request(mcp={"time": {}}))


async def pause(control_plane: ControlPlane, sandbox: Sandbox) -> None:
    await control_plane.service.pause(control_plane.team_id, sandbox.id, PauseMode.MEMORY)


async def halt(control_plane: ControlPlane, sandbox: Sandbox) -> None:
    await control_plane.service.pause(control_plane.team_id, sandbox.id, PauseMode.FILESYSTEM)


async def resume(control_plane: ControlPlane, sandbox: Sandbox) -> object:
    return await control_plane.service.connect(control_plane.team_id, sandbox.id, 60)


async def reboot(control_plane: ControlPlane, sandbox: Sandbox) -> object:
    return await control_plane.service.connect(control_plane.team_id, sandbox.id, 60, reboot=True)


async def kill(control_plane: ControlPlane, sandbox: Sandbox) -> None:
    await control_plane.service.kill(control_plane.team_id, sandbox.id)


async def set_network(control_plane: ControlPlane, sandbox: Sandbox) -> None:
    await control_plane.service.set_network(control_plane.team_id, sandbox.id, {"denyOut": ["10.1.0.0/16"]})


async def fork(control_plane: ControlPlane, sandbox: Sandbox) -> object:
    return await control_plane.service.fork(control_plane.team_id, sandbox.id, count=2, timeout_s=60)


async def snapshot(control_plane: ControlPlane, sandbox: Sandbox) -> object:
    return await control_plane.service.snapshot(control_plane.team_id, sandbox.id, None)


STEPS = 8
"""Of the engine; as many as the longest verb takes."""


@pytest.mark.parametrize(
    "verb", [create, create_with_servers, pause, halt, resume, reboot, kill, set_network, fork, snapshot]
)
async def test_nothing_half_made_outlives_a_control_plane_that_is_killed(
    start_control_plane: StartControlPlane, pods: PodTransport, verb: Verb
) -> None:
    engine = EngineThatStopsTheWorld()
    for steps in range(STEPS):
        async with start_control_plane(engine=engine, warm=1) as first:
            sandbox = (await first.service.create(first.team_id, request())).sandbox
            if verb in (resume, reboot):
                await paused(first, sandbox)
            await until_consistent(first, engine, warm=1)
            engine.stop_after(steps)
            asked = asyncio.ensure_future(verb(first, sandbox))
            over = asyncio.ensure_future(engine.is_over.wait())
            await asyncio.wait([asked, over], return_when=asyncio.FIRST_COMPLETED)
            for task in (asked, over):
                task.cancel()
            await asyncio.wait([asked, over])
            if not asked.cancelled():
                asked.exception()  # whatever a caller of a dying process is told
        engine.go_on()
        async with start_control_plane(engine=engine, warm=1) as second:
            await until_consistent(second, engine, warm=1)
            for live in list(second.directory):
                await second.service.kill(second.team_id, live.sandbox_id)
            await until_consistent(second, engine, warm=1)
    assert_no_pod_had_two_sandboxes(pods)
