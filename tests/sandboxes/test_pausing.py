"""Sandboxes are paused and resumed, by hand, at their time-out and by traffic; nothing is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Literal

import pytest

from app.engines.in_memory_engine import InMemoryEngine
from app.engines.interface import Pod
from app.errors import Conflict, EngineError, GuestUnresponsive, NotFound, SandboxFailed
from app.sandboxes.models import Lifecycle, PauseMode, Sandbox, ServerStatus, Status
from app.sandboxes.store import Store
from tests.in_process import IMAGES, Clock, ControlPlane, StartControlPlane, request
from tests.pods import PodTransport, ready
from tests.waiting import BOUND_S, until

MEMORY, FILESYSTEM = PauseMode.MEMORY, PauseMode.FILESYSTEM


class EngineThatFails(InMemoryEngine):
    """Fails the verbs named in `failing`."""

    def __init__(self) -> None:
        super().__init__(IMAGES, address_of=lambda spec: f"{spec.pod_id}.pod")
        self.failing: set[str] = set()

    async def pause(self, pod_id: str) -> None:
        if "pause" in self.failing:
            raise EngineError("device busy")
        await super().pause(pod_id)

    async def resume(self, pod_id: str) -> Pod:
        if "resume" in self.failing:
            raise EngineError("device busy")
        return await super().resume(pod_id)


async def create(control_plane: ControlPlane, **fields: object) -> Sandbox:
    return (await control_plane.service.create(control_plane.team_id, request(**fields))).sandbox


async def states(engine: InMemoryEngine) -> set[str]:
    return {container.state for pod in (await engine.observe()).values() for container in pod.containers}


async def until_state(control_plane: ControlPlane, sandbox_id: str, status: Status) -> Sandbox:
    async with asyncio.timeout(BOUND_S):
        while (sandbox := await control_plane.store.find(sandbox_id)) is None or sandbox.status is not status:
            await asyncio.sleep(0.002)
    return sandbox


async def test_a_pause_freezes_and_connect_goes_on(
    control_plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    team_id, service = control_plane.team_id, control_plane.service
    sandbox = await create(control_plane, mcp={"time": {}})
    await service.pause(team_id, sandbox.id, MEMORY)
    assert await states(engine) == {"paused"}
    view = await service.get(team_id, sandbox.id)
    assert (view.sandbox.status, view.sandbox.pause_mode) == (Status.PAUSED, MEMORY)
    assert view.servers == (ServerStatus(name="time", state="paused"),)
    live = control_plane.directory.find(sandbox.id)
    assert live is not None
    assert live.address is None

    resumed, was_resumed = await service.connect(team_id, sandbox.id, 90)
    assert was_resumed
    assert await states(engine) == {"running"}
    assert (resumed.sandbox.status, resumed.sandbox.pause_mode) == (Status.RUNNING, None)
    assert resumed.sandbox.secrets == sandbox.secrets
    (pod,) = pods.pods.values()
    assert len(pod.inits) == len(pod.configs) == 1
    live = control_plane.directory.find(sandbox.id)
    assert live is not None
    assert live.address is not None


async def test_a_pause_of_the_files_boots_again(
    control_plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    sandbox = await create(control_plane, mcp={"time": {}})
    await control_plane.service.pause(control_plane.team_id, sandbox.id, FILESYSTEM)
    assert await states(engine) == {"exited"}
    view, was_resumed = await control_plane.service.connect(control_plane.team_id, sandbox.id, 90)
    assert was_resumed
    assert view.servers == (ready("time"),)
    (pod,) = pods.pods.values()
    assert pod.inits[0] == pod.inits[1]
    assert pod.configs[0]["tokens"] == pod.configs[1]["tokens"]
    assert pod.configs[1]["servers"][0].items() >= pod.configs[0]["servers"][0].items()


async def test_memory_can_be_given_up_at_the_resume(
    control_plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    sandbox = await create(control_plane)
    await control_plane.service.pause(control_plane.team_id, sandbox.id, MEMORY)
    await control_plane.service.connect(control_plane.team_id, sandbox.id, 90, reboot=True)
    assert await states(engine) == {"running"}
    (pod,) = pods.pods.values()
    assert len(pod.inits) == 2


async def test_a_pause_needs_a_sandbox_that_runs(control_plane: ControlPlane) -> None:
    sandbox = await create(control_plane)
    with pytest.raises(NotFound):
        await control_plane.service.pause("team_other", sandbox.id, MEMORY)
    with pytest.raises(Conflict, match="running"):
        await control_plane.service.resume(control_plane.team_id, sandbox.id, 60)
    await control_plane.service.pause(control_plane.team_id, sandbox.id, MEMORY)
    with pytest.raises(Conflict, match="already paused"):
        await control_plane.service.pause(control_plane.team_id, sandbox.id, MEMORY)


async def test_a_pause_may_insist_on_a_healthy_agent(control_plane: ControlPlane, pods: PodTransport) -> None:
    sandbox = await create(control_plane)
    pods.is_silent = True
    with pytest.raises(GuestUnresponsive):
        await control_plane.service.pause(control_plane.team_id, sandbox.id, MEMORY, only_healthy=True)
    await control_plane.service.pause(control_plane.team_id, sandbox.id, MEMORY)


async def test_a_paused_sandbox_has_no_time_and_can_be_killed(
    control_plane: ControlPlane, engine: InMemoryEngine, clock: Clock
) -> None:
    sandbox = await create(control_plane, timeout_s=60)
    await control_plane.service.pause(control_plane.team_id, sandbox.id, MEMORY)
    clock.advance(days=30)
    control_plane.expiry.moved()
    assert (await control_plane.service.get(control_plane.team_id, sandbox.id)).sandbox.status is Status.PAUSED
    await control_plane.service.kill(control_plane.team_id, sandbox.id)
    async with asyncio.timeout(BOUND_S):
        while await engine.observe():
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("mode", [MEMORY, FILESYSTEM])
async def test_a_sandbox_may_be_paused_when_its_time_is_over(
    control_plane: ControlPlane, engine: InMemoryEngine, clock: Clock, mode: PauseMode
) -> None:
    sandbox = await create(control_plane, lifecycle=Lifecycle(on_timeout="pause", pause_mode=mode))
    clock.advance(seconds=61)
    control_plane.expiry.moved()
    assert (await until_state(control_plane, sandbox.id, Status.PAUSED)).pause_mode is mode
    assert await states(engine) == {"paused" if mode is MEMORY else "exited"}


class StoreThatIsAskedLate(Store):
    """Gives a sandbox more time just after it has told that its time is over."""

    looks = 0
    extended = False

    async def expired(self, now: datetime) -> list[str]:
        self.looks += 1
        over = await super().expired(now)
        for sandbox_id in over:
            self.extended = await self.set_timeout(sandbox_id, ends_at=now + timedelta(hours=1), timeout_s=3600)
        return over


@pytest.mark.parametrize("on_timeout", ["kill", "pause"])
async def test_a_sandbox_that_is_given_more_time_at_the_last_moment_goes_on(
    start_control_plane: StartControlPlane, clock: Clock, on_timeout: Literal["kill", "pause"]
) -> None:
    async with start_control_plane(store_class=StoreThatIsAskedLate) as control_plane:
        sandbox = await create(control_plane, lifecycle=Lifecycle(on_timeout=on_timeout))
        store = control_plane.store
        assert isinstance(store, StoreThatIsAskedLate)
        clock.advance(seconds=61)
        control_plane.expiry.moved()
        await until(lambda: store.extended)
        looks = store.looks
        control_plane.expiry.moved()
        await until(lambda: store.looks > looks)  # it is done with what it was told before
        view = await control_plane.service.get(control_plane.team_id, sandbox.id)
        assert (view.sandbox.status, view.sandbox.target) == (Status.RUNNING, Status.RUNNING)


class StoreWithASlowAnswer(Store):
    """Tells when the next sandbox ends only after something else has happened, where a test asks for that."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def next_expiry(self) -> datetime | None:
        answer = await super().next_expiry()
        if self.meanwhile is not None:
            happens, self.meanwhile = self.meanwhile, None
            await happens()
        return answer


async def test_a_sandbox_made_while_the_next_end_is_looked_up_is_heeded(
    start_control_plane: StartControlPlane, clock: Clock
) -> None:
    async with start_control_plane(store_class=StoreWithASlowAnswer) as control_plane:
        store = control_plane.store
        assert isinstance(store, StoreWithASlowAnswer)
        await create(control_plane, timeout_s=60)
        await until(lambda: control_plane.expiry.wakes_up_at is not None)
        made: list[Sandbox] = []

        async def make_one() -> None:
            made.append(await create(control_plane, timeout_s=60))

        clock.advance(seconds=61)
        store.meanwhile = make_one
        control_plane.expiry.moved()
        await until(lambda: [control_plane.expiry.wakes_up_at] == [sandbox.ends_at for sandbox in made])


class StoreWithASlowLook(Store):
    """Shows a sandbox as it was before something else happened, where a test asks for that."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def find(self, sandbox_id: str, *, team_id: str | None = None) -> Sandbox | None:
        found = await super().find(sandbox_id, team_id=team_id)
        if self.meanwhile is not None:
            happens, self.meanwhile = self.meanwhile, None
            await happens()
        return found


async def test_connect_resumes_what_was_paused_at_that_moment(start_control_plane: StartControlPlane) -> None:
    async with start_control_plane(store_class=StoreWithASlowLook) as control_plane:
        service, store, team_id = control_plane.service, control_plane.store, control_plane.team_id
        assert isinstance(store, StoreWithASlowLook)
        sandbox = await create(control_plane, timeout_s=60)
        store.meanwhile = lambda: service.pause(team_id, sandbox.id, MEMORY)
        view, was_resumed = await service.connect(team_id, sandbox.id, 90)
        assert was_resumed
        assert view.sandbox.status is Status.RUNNING
        live = control_plane.directory.find(sandbox.id)
        assert live is not None
        assert live.address is not None


async def test_of_two_connects_to_a_running_sandbox_the_longer_holds(start_control_plane: StartControlPlane) -> None:
    async with start_control_plane(store_class=StoreWithASlowLook) as control_plane:
        service, store, team_id = control_plane.service, control_plane.store, control_plane.team_id
        assert isinstance(store, StoreWithASlowLook)
        sandbox = await create(control_plane, timeout_s=60)
        store.meanwhile = lambda: service.connect(team_id, sandbox.id, 900)
        view, _ = await service.connect(team_id, sandbox.id, 90)
        assert view.sandbox == (await service.get(team_id, sandbox.id)).sandbox
        assert view.sandbox.ends_at > sandbox.ends_at + timedelta(seconds=800)


async def test_of_two_connects_to_a_paused_sandbox_the_longer_holds(start_control_plane: StartControlPlane) -> None:
    async with start_control_plane(store_class=StoreWithASlowLook) as control_plane:
        service, store, team_id = control_plane.service, control_plane.store, control_plane.team_id
        assert isinstance(store, StoreWithASlowLook)
        sandbox = await create(control_plane, timeout_s=60)
        await service.pause(team_id, sandbox.id, MEMORY)
        store.meanwhile = lambda: service.connect(team_id, sandbox.id, 90)
        view, _ = await service.connect(team_id, sandbox.id, 900)
        assert view.sandbox == (await service.get(team_id, sandbox.id)).sandbox
        assert view.sandbox.ends_at > sandbox.ends_at + timedelta(seconds=800)


async def test_traffic_wakes_a_sandbox_that_may_be_woken(control_plane: ControlPlane) -> None:
    sandbox = await create(control_plane, timeout_s=77, lifecycle=Lifecycle(auto_resume=True))
    await control_plane.service.pause(control_plane.team_id, sandbox.id, MEMORY)
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(control_plane.service.resume_for_traffic(sandbox.id))
    live = control_plane.directory.find(sandbox.id)
    assert live is not None
    assert live.address is not None
    assert (live.sandbox.ends_at - live.sandbox.started_at).total_seconds() == 77


@pytest.mark.parametrize(("auto_resume", "mode"), [(False, MEMORY), (True, FILESYSTEM)])
async def test_traffic_does_not_wake_others(control_plane: ControlPlane, auto_resume: bool, mode: PauseMode) -> None:
    sandbox = await create(control_plane, lifecycle=Lifecycle(auto_resume=auto_resume))
    await control_plane.service.pause(control_plane.team_id, sandbox.id, mode)
    with pytest.raises(NotFound):
        await control_plane.service.resume_for_traffic(sandbox.id)


async def test_a_sandbox_that_cannot_be_paused_goes_on(start_control_plane: StartControlPlane) -> None:
    engine = EngineThatFails()
    async with start_control_plane(engine=engine) as control_plane:
        sandbox = await create(control_plane)
        engine.failing = {"pause"}
        with pytest.raises(SandboxFailed, match="could not be paused"):
            await control_plane.service.pause(control_plane.team_id, sandbox.id, MEMORY)
        assert (await control_plane.service.get(control_plane.team_id, sandbox.id)).sandbox == sandbox
        live = control_plane.directory.find(sandbox.id)
        assert live is not None
        assert live.address is not None


async def test_a_sandbox_that_cannot_be_resumed_stays_paused(start_control_plane: StartControlPlane) -> None:
    engine = EngineThatFails()
    async with start_control_plane(engine=engine) as control_plane:
        sandbox = await create(control_plane)
        await control_plane.service.pause(control_plane.team_id, sandbox.id, MEMORY)
        engine.failing = {"resume"}
        with pytest.raises(SandboxFailed, match="could not be resumed"):
            await control_plane.service.connect(control_plane.team_id, sandbox.id, 60)
        engine.failing = set()
        _, was_resumed = await control_plane.service.connect(control_plane.team_id, sandbox.id, 60)
        assert was_resumed


async def test_a_paused_sandbox_without_its_containers_is_gone(
    control_plane: ControlPlane, engine: InMemoryEngine
) -> None:
    sandbox = await create(control_plane)
    await control_plane.service.pause(control_plane.team_id, sandbox.id, MEMORY)
    (pod_id,) = await engine.observe()
    engine.remove_container(pod_id, "workspace")
    with pytest.raises(NotFound):
        await control_plane.service.connect(control_plane.team_id, sandbox.id, 60)


async def test_a_paused_sandbox_is_there_after_a_restart(
    start_control_plane: StartControlPlane, engine: InMemoryEngine
) -> None:
    async with start_control_plane() as first:
        sandbox = await create(first, lifecycle=Lifecycle(auto_resume=True))
        await first.service.pause(first.team_id, sandbox.id, MEMORY)
    async with start_control_plane() as second:
        live = second.directory.find(sandbox.id)
        assert live is not None
        assert live.address is None
        await second.service.resume_for_traffic(sandbox.id)
        assert await states(engine) == {"running"}


async def test_a_pause_that_was_cut_short_is_finished_by_the_next_control_plane(
    start_control_plane: StartControlPlane, engine: InMemoryEngine
) -> None:
    async with start_control_plane() as first:
        sandbox = await create(first)
        await first.store.ask_to_pause(sandbox.id, MEMORY)
    async with start_control_plane() as second:
        await until_state(second, sandbox.id, Status.PAUSED)
        assert await states(engine) == {"paused"}


async def test_a_resume_that_was_cut_short_is_taken_back_by_the_next_control_plane(
    start_control_plane: StartControlPlane, engine: InMemoryEngine
) -> None:
    async with start_control_plane() as first:
        sandbox = await create(first)
        await first.service.pause(first.team_id, sandbox.id, MEMORY)
        await first.store.ask_to_run(sandbox.id)
        (pod_id,) = await engine.observe()
        await engine.resume(pod_id)
    async with start_control_plane() as second:
        await until(lambda: second.directory.find(sandbox.id) is not None)
        assert (await until_state(second, sandbox.id, Status.PAUSED)).target is Status.PAUSED
        async with asyncio.timeout(BOUND_S):
            while await states(engine) != {"paused"}:
                await asyncio.sleep(0.002)


async def test_what_was_frozen_when_the_machine_went_down_keeps_its_files(
    start_control_plane: StartControlPlane, engine: InMemoryEngine
) -> None:
    async with start_control_plane() as first:
        sandbox = await create(first)
        await first.service.pause(first.team_id, sandbox.id, MEMORY)
    (pod_id,) = await engine.observe()
    engine.exit_container(pod_id, "workspace", exit_code=137)
    async with start_control_plane() as second:
        async with asyncio.timeout(BOUND_S):
            while (found := await second.store.find(sandbox.id)) is None or found.pause_mode is not FILESYSTEM:
                await asyncio.sleep(0.002)
        _, was_resumed = await second.service.connect(second.team_id, sandbox.id, 60)
        assert was_resumed
