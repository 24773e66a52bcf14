"""Sandboxes come up, fail, expire, are killed and are adopted; whatever happens, nothing stays behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.engines.in_memory_engine import InMemoryEngine
from app.engines.interface import Pod, PodSpec
from app.engines.jobs import JobOutcome, JobSpec, Report
from app.errors import (
    Conflict,
    EngineAway,
    EngineError,
    EngineOutOfSpace,
    ImageMissing,
    NotFound,
    OutOfSpace,
    Problem,
    SandboxFailed,
    ServerStartFailed,
)
from app.sandboxes.listing import Listing
from app.sandboxes.models import McpOptions, ServerStatus
from tests.in_process import IMAGES, Clock, ControlPlane, StartControlPlane, request
from tests.pods import PodTransport, ready
from tests.waiting import BOUND_S, until


class EngineFailsToStart(InMemoryEngine):
    """Makes the first container, then fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__(IMAGES)
        self._error = error

    async def start(self, spec: PodSpec) -> Pod:
        await super().start(PodSpec(pod_id=spec.pod_id, containers=spec.containers[:1], labels=spec.labels))
        raise self._error


class EngineSlowToStart(InMemoryEngine):
    """Starts a pod and does not return."""

    def __init__(self) -> None:
        super().__init__(IMAGES)
        self.has_begun = asyncio.Event()

    async def start(self, spec: PodSpec) -> Pod:
        await super().start(spec)
        self.has_begun.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


class EngineFailsToStopAtFirst(InMemoryEngine):
    def __init__(self) -> None:
        super().__init__(IMAGES, address_of=lambda spec: f"{spec.pod_id}.pod")
        self.attempts = 0

    async def stop(self, pod_id: str) -> None:
        self.attempts += 1
        if self.attempts == 1:
            raise EngineError("device busy")
        await super().stop(pod_id)


async def until_nothing_is_left(engine: InMemoryEngine, control_plane: ControlPlane) -> None:
    async with asyncio.timeout(BOUND_S):
        while await engine.observe() or await control_plane.store.pods() or await control_plane.store.to_stop():
            await asyncio.sleep(0.002)
    assert list(control_plane.directory) == []


async def test_a_created_sandbox_is_configured_and_can_be_found(
    control_plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    view = await control_plane.service.create(control_plane.team_id, request(envs={"A": "b"}, mcp={"time": {}}))
    (pod_id,) = await engine.observe()
    pod = pods.pod(f"{pod_id}.pod")
    secrets = view.sandbox.secrets
    record = await control_plane.store.pod_of(view.sandbox.id)
    assert record is not None
    assert pod.inits == [
        {
            "control": record.secrets.agent_token,
            "sandboxId": view.sandbox.id,
            "templateId": "base",
            "teamId": control_plane.team_id,
            "accessToken": secrets.access_token,
            "envs": {"A": "b"},
            "stdioToken": record.secrets.stdio_token,
            "mcpToken": secrets.mcp_token,
        }
    ]
    assert pod.configs[0]["control"] == f"Bearer {record.secrets.gateway_token}"
    assert pod.configs[0]["tokens"] == [secrets.mcp_token]
    assert view.servers == (ready("time"),)
    live = control_plane.directory.find(view.sandbox.id)
    assert live is not None
    assert (live.address, live.access_token) == (f"{pod_id}.pod", secrets.access_token)
    assert (await control_plane.service.page(control_plane.team_id, Listing())).sandboxes == [view.sandbox]


async def test_a_killed_sandbox_is_gone_at_once_and_its_pod_soon(
    control_plane: ControlPlane, engine: InMemoryEngine
) -> None:
    sandbox = (await control_plane.service.create(control_plane.team_id, request())).sandbox
    await control_plane.service.kill(control_plane.team_id, sandbox.id)
    assert control_plane.directory.find(sandbox.id) is None
    for verb in (control_plane.service.get, control_plane.service.kill):
        with pytest.raises(NotFound):
            await verb(control_plane.team_id, sandbox.id)
    await until_nothing_is_left(engine, control_plane)


async def test_packages_that_others_removed_while_no_pod_held_them_are_installed_again(
    start_control_plane: StartControlPlane, engine: InMemoryEngine
) -> None:
    store = engine.jobs.shared.setdefault("mcp-store", {})

    async def install(spec: JobSpec, report: Report) -> JobOutcome:
        store[f".installed/{spec.name.removeprefix('install-')}.json"] = b"{}"
        return JobOutcome(exit_code=0, output="installed\n")

    engine.jobs.program = install
    async with start_control_plane(sweep_interval_s=0.01) as control_plane:

        async def create_and_kill() -> None:
            view = await control_plane.service.create(control_plane.team_id, request(mcp={"time": {}}))
            await control_plane.service.kill(control_plane.team_id, view.sandbox.id)
            await until_nothing_is_left(engine, control_plane)

        for _ in range(3):
            await create_and_kill()
        assert len(engine.jobs.started) == 1
        store.clear()
        async with asyncio.timeout(BOUND_S):
            while len(engine.jobs.started) == 1:
                await create_and_kill()


async def test_another_teams_sandbox_is_not_found(control_plane: ControlPlane) -> None:
    sandbox = (await control_plane.service.create(control_plane.team_id, request())).sandbox
    for verb in (control_plane.service.get, control_plane.service.kill):
        with pytest.raises(NotFound):
            await verb("team_other", sandbox.id)
    assert control_plane.directory.find(sandbox.id) is not None


async def test_a_server_that_fails_fails_the_create_and_says_why(
    control_plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    pods.failing["time"] = ["no such zone"]
    with pytest.raises(ServerStartFailed, match=r"'time' exited with code 3\n  \| no such zone"):
        await control_plane.service.create(control_plane.team_id, request(mcp={"time": {}, "fetch": {}}))
    await until_nothing_is_left(engine, control_plane)


async def test_a_server_that_fails_is_only_marked_if_the_caller_prefers_that(
    control_plane: ControlPlane, pods: PodTransport
) -> None:
    pods.failing["time"] = ["no such zone"]
    options = McpOptions(on_failure="degrade")
    view = await control_plane.service.create(
        control_plane.team_id, request(mcp={"time": {}, "fetch": {}}, mcp_options=options)
    )
    failed = ServerStatus(name="time", state="failed", message="exited with code 3", stderr=("no such zone",))
    assert view.servers == (failed, ready("fetch"))
    assert (await control_plane.service.get(control_plane.team_id, view.sandbox.id)).servers == view.servers


async def test_a_caller_who_does_not_wait_gets_servers_that_are_starting(
    control_plane: ControlPlane, pods: PodTransport
) -> None:
    pods.never_ready.add("time")
    view = await control_plane.service.create(
        control_plane.team_id, request(mcp={"time": {}}, mcp_options=McpOptions(wait=False))
    )
    assert view.servers == (ServerStatus(name="time", state="starting"),)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (EngineError("cannot mount"), SandboxFailed),
        (EngineOutOfSpace("no space left"), OutOfSpace),
        (ImageMissing("workspace:1"), SandboxFailed),
        (RuntimeError("a defect"), SandboxFailed),
    ],
)
async def test_a_failed_start_leaves_nothing_and_says_what_is_wrong(
    error: Exception,
    problem: type[Problem],
    start_control_plane: StartControlPlane,
) -> None:
    engine = EngineFailsToStart(error)
    async with start_control_plane(engine=engine) as control_plane:
        with pytest.raises(problem):
            await control_plane.service.create(control_plane.team_id, request())
        await until_nothing_is_left(engine, control_plane)


async def test_a_missing_image_of_a_server_is_the_callers_to_mend(
    start_control_plane: StartControlPlane, tmp_path: Path
) -> None:
    manifest = "{name: shot, title: Shot, description: S., type: server, image: 'acme/shot:1', category: test}"
    (tmp_path / "shot.yaml").write_text(manifest)
    async with start_control_plane(own_servers=tmp_path) as control_plane:
        with pytest.raises(ServerStartFailed, match="'shot' needs the image acme/shot:1"):
            await control_plane.service.create(control_plane.team_id, request(mcp={"shot": {}}))


async def test_an_engine_that_is_away_is_said_to_be_away(control_plane: ControlPlane, engine: InMemoryEngine) -> None:
    engine.is_away = True
    with pytest.raises(EngineAway):
        await control_plane.service.create(control_plane.team_id, request())
    engine.is_away = False
    await control_plane.service.create(control_plane.team_id, request())


async def test_a_pod_in_which_nothing_listens_is_given_up(
    start_control_plane: StartControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    pods.is_silent = True
    async with start_control_plane(listen_deadline_s=0.05) as control_plane:
        with pytest.raises(SandboxFailed, match="did not come up"):
            await control_plane.service.create(control_plane.team_id, request())
        await until_nothing_is_left(engine, control_plane)


async def test_a_sandbox_can_be_killed_while_it_starts(start_control_plane: StartControlPlane) -> None:
    engine = EngineSlowToStart()
    async with start_control_plane(engine=engine) as control_plane:
        create = asyncio.create_task(control_plane.service.create(control_plane.team_id, request()))
        async with asyncio.timeout(BOUND_S):
            await engine.has_begun.wait()
        ((_, pod),) = (await control_plane.store.pods()).items()
        assert pod.sandbox_id is not None
        await control_plane.service.kill(control_plane.team_id, pod.sandbox_id)
        with pytest.raises(Conflict):
            await create
        await until_nothing_is_left(engine, control_plane)


async def test_stopping_is_tried_again_until_the_engine_did_it(start_control_plane: StartControlPlane) -> None:
    engine = EngineFailsToStopAtFirst()
    async with start_control_plane(engine=engine) as control_plane:
        sandbox = (await control_plane.service.create(control_plane.team_id, request())).sandbox
        await control_plane.service.kill(control_plane.team_id, sandbox.id)
        await until_nothing_is_left(engine, control_plane)
    assert engine.attempts == 2


async def test_a_sandbox_ends_when_its_time_is_over(
    control_plane: ControlPlane, engine: InMemoryEngine, clock: Clock
) -> None:
    await control_plane.service.create(control_plane.team_id, request(timeout_s=60))
    clock.advance(seconds=61)
    control_plane.expiry.moved()
    await until_nothing_is_left(engine, control_plane)


async def test_a_timeout_of_zero_ends_a_sandbox_at_once(control_plane: ControlPlane, engine: InMemoryEngine) -> None:
    sandbox = (await control_plane.service.create(control_plane.team_id, request())).sandbox
    await control_plane.service.set_timeout(control_plane.team_id, sandbox.id, 0)
    await until_nothing_is_left(engine, control_plane)


async def test_connect_lengthens_a_life_and_never_shortens_it(control_plane: ControlPlane) -> None:
    sandbox = (await control_plane.service.create(control_plane.team_id, request(timeout_s=60))).sandbox
    longer, was_resumed = await control_plane.service.connect(control_plane.team_id, sandbox.id, 600)
    assert not was_resumed
    assert longer.sandbox.ends_at > sandbox.ends_at
    shorter, _ = await control_plane.service.connect(control_plane.team_id, sandbox.id, 10)
    assert shorter.sandbox.ends_at == longer.sandbox.ends_at
    assert (await control_plane.service.get(control_plane.team_id, sandbox.id)).sandbox == longer.sandbox


async def test_running_sandboxes_are_adopted_by_the_next_control_plane(
    start_control_plane: StartControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    async with start_control_plane() as first:
        created = await first.service.create(first.team_id, request(mcp={"time": {}}))
    async with start_control_plane() as second:
        await until(lambda: second.directory.find(created.sandbox.id) is not None)
        assert (await second.service.get(second.team_id, created.sandbox.id)).servers == created.servers
        (pod_id,) = await engine.observe()
        assert len(pods.pod(f"{pod_id}.pod").inits) == 1
        await second.service.kill(second.team_id, created.sandbox.id)
        await until_nothing_is_left(engine, second)


async def test_what_was_starting_when_the_control_plane_died_is_removed(
    start_control_plane: StartControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    async with start_control_plane() as first:
        pods.is_silent = True
        create = asyncio.create_task(first.service.create(first.team_id, request()))
        async with asyncio.timeout(BOUND_S):
            while not await engine.observe():
                await asyncio.sleep(0.002)
    with pytest.raises(Conflict):
        await create
    assert await engine.observe()
    async with start_control_plane() as second:
        await until_nothing_is_left(engine, second)


async def test_what_was_stopping_when_the_control_plane_died_is_removed(
    start_control_plane: StartControlPlane, engine: InMemoryEngine
) -> None:
    async with start_control_plane() as first:
        sandbox = (await first.service.create(first.team_id, request())).sandbox
        assert await first.store.ask_to_stop(sandbox.id)
    async with start_control_plane() as second:
        await until_nothing_is_left(engine, second)


async def test_a_pod_that_no_row_knows_is_removed(
    start_control_plane: StartControlPlane, engine: InMemoryEngine
) -> None:
    async with start_control_plane() as first:
        sandbox = (await first.service.create(first.team_id, request())).sandbox
        await first.store.mark_stopped(sandbox.id, sandbox.created_at)
    async with start_control_plane() as second:
        await until_nothing_is_left(engine, second)


async def test_a_sandbox_whose_container_died_while_nobody_looked_is_not_adopted(
    start_control_plane: StartControlPlane, engine: InMemoryEngine
) -> None:
    async with start_control_plane() as first:
        sandbox = (await first.service.create(first.team_id, request(mcp={}))).sandbox
    (pod_id,) = await engine.observe()
    engine.exit_container(pod_id, "gateway", exit_code=137)
    async with start_control_plane() as second:
        await until_nothing_is_left(engine, second)
        with pytest.raises(NotFound):
            await second.service.get(second.team_id, sandbox.id)


async def test_the_workspace_can_replace_the_servers(control_plane: ControlPlane, pods: PodTransport) -> None:
    view = await control_plane.service.create(control_plane.team_id, request(mcp={"time": {}}))
    live = control_plane.directory.find(view.sandbox.id)
    assert live is not None
    assert live.address is not None
    pod = pods.pod(live.address)
    await pod.requests.put({"id": "r1", "mcp": {"fetch": {}}, "token": "chosen"})
    async with asyncio.timeout(BOUND_S):
        assert await pod.settled.get() == {"id": "r1", "ok": True}
    assert [server["name"] for server in pod.configs[-1]["servers"]] == ["fetch"]
    assert pod.configs[-1]["tokens"] == [view.sandbox.secrets.mcp_token, "chosen"]
    (recorded,) = await control_plane.store.alive()
    assert recorded.secrets.mcp == {"fetch": {}}


async def test_changes_of_servers_from_inside_and_outside_come_one_after_the_other(
    control_plane: ControlPlane, pods: PodTransport
) -> None:
    team_id, service = control_plane.team_id, control_plane.service
    sandbox_id = (await service.create(team_id, request(mcp={"time": {}}))).sandbox.id
    live = control_plane.directory.find(sandbox_id)
    assert live is not None
    assert live.address is not None
    pod = pods.pod(live.address)
    pods.configuring.clear()
    async with asyncio.timeout(BOUND_S), asyncio.TaskGroup() as group:
        group.create_task(service.change_servers(team_id, sandbox_id, {"fetch": {}}, None))
        await until(lambda: len(pod.configs) == 2)
        await pod.requests.put({"id": "r1", "mcp": {"fetch": {}}, "token": "chosen"})
        await until(lambda: pod.unsettled)
        for _ in range(50):  # far more turns than it takes to change the servers
            await control_plane.store.alive()
        assert len(pod.configs) == 2
        pods.configuring.set()
        assert (await pod.settled.get())["ok"] is True
    assert [server["name"] for server in pod.configs[-1]["servers"]] == ["fetch"]
    (recorded,) = await control_plane.store.alive()
    assert recorded.secrets.mcp == {"fetch": {}}


async def test_two_changes_of_servers_at_a_time_both_hold(control_plane: ControlPlane) -> None:
    team_id, service = control_plane.team_id, control_plane.service
    sandbox_id = (await service.create(team_id, request(mcp={"time": {}}))).sandbox.id
    async with asyncio.TaskGroup() as group:
        group.create_task(service.change_servers(team_id, sandbox_id, {"fetch": {}}, None))
        group.create_task(service.change_servers(team_id, sandbox_id, {"time": None}, None))
    (recorded,) = await control_plane.store.alive()
    assert recorded.secrets.mcp == {"fetch": {}}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"mcp": {"tiem": {}}, "token": "t"}, "Did you mean 'time'"),
        ({"pull": ["tiem"]}, "Did you mean 'time'"),
        ({"mcp": {"fetch": {}}, "token": "t"}, "'fetch' exited with code 3"),
        ({"mcp": {"time": 5}, "token": "t"}, "mcp: a map"),
        ({"mcp": ["time"], "token": "t"}, "mcp: a map"),
        ({"mcp": {"time": {}}}, "token: a string"),
        ({"mcp": {"time": {}}, "token": None}, "token: a string"),
        ({"pull": [{}]}, "pull: a list"),
        ({"run": {"server": [], "tool": {}, "arguments": {}}}, "internal reason"),
    ],
)
async def test_the_workspace_is_told_what_is_wrong_with_its_request(
    control_plane: ControlPlane, pods: PodTransport, asked: dict[str, object], message: str
) -> None:
    pods.failing["fetch"] = []
    view = await control_plane.service.create(control_plane.team_id, request(mcp={"time": {}}))
    live = control_plane.directory.find(view.sandbox.id)
    assert live is not None
    assert live.address is not None
    pod = pods.pod(live.address)
    await pod.requests.put({"id": "r1", **asked})
    async with asyncio.timeout(BOUND_S):
        settled = await pod.settled.get()
    assert settled["ok"] is False
    assert message in settled["message"]
