"""Calls of container tools: asked for by the gateway, planned by the sandbox's own record, run beside its pod."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.catalog import CallError, ContainerTool
from app.engines.in_memory_engine import InMemoryEngine
from app.engines.interface import Limits, VolumeMount
from app.engines.runs import OutputKeeper, RunSpec
from app.errors import ServerStartFailed
from app.sandboxes.container_calls import make_run
from app.sandboxes.gateway_plan import ContainerTools, GatewayPlan
from app.sandboxes.models import MountedVolume, PauseMode
from app.sandboxes.service import SandboxView
from tests.in_process import ControlPlane, StartControlPlane, request
from tests.pods import PodInMemory, PodTransport
from tests.waiting import BOUND_S, until

TALK = """
name: talk
title: Talk
type: poci
limits: {memoryMib: 64}
secrets: [{name: talk.key, env: TALK_KEY}]
tools:
  - name: say
    description: Says it.
    parameters: {properties: {args: {type: array, items: {type: string}}}, required: [args]}
    container: {image: "acme/say:1", command: ["{{args|into}}"], user: nobody}
  - name: shout
    timeoutS: 5
    container: {image: "acme/shout:1"}
"""
KEY = {"talk": {"key": "secret"}}


@pytest.fixture
def own_servers(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "talk.yaml").write_text(TALK)
    return folder


@pytest.fixture
async def plane(
    start_control_plane: StartControlPlane, own_servers: Path, engine: InMemoryEngine
) -> AsyncIterator[ControlPlane]:
    engine.builds.registry |= {"acme/say:1": {}, "acme/shout:1": {}}
    async with start_control_plane(own_servers=own_servers) as plane:
        yield plane


class Asker:
    """The gateway of a sandbox, as the control plane hears of it."""

    def __init__(self, pod: PodInMemory) -> None:
        self._pod = pod
        self._count = 0

    async def ask(self, tool: str, arguments: Any, server: str = "talk") -> str:
        self._count += 1
        identifier = f"r{self._count}"
        run = {"server": server, "tool": tool, "arguments": arguments}
        await self._pod.requests.put({"id": identifier, "run": run})
        return identifier

    async def take_back(self, identifier: str) -> None:
        await self._pod.requests.put({"id": identifier})

    async def answer(self) -> dict[str, Any]:
        async with asyncio.timeout(BOUND_S):
            return await self._pod.settled.get()

    async def call(self, tool: str, arguments: Any, server: str = "talk") -> dict[str, Any]:
        await self.ask(tool, arguments, server)
        return await self.answer()


def asker(plane: ControlPlane, pods: PodTransport, view: SandboxView) -> Asker:
    live = plane.directory.find(view.sandbox.id)
    assert live is not None
    return Asker(pods.pod(f"{live.pod.id}.pod"))


async def create(plane: ControlPlane, **fields: Any) -> SandboxView:
    return await plane.service.create(plane.team_id, request(**{"mcp": KEY, **fields}))


async def test_tools_are_told_to_the_gateway_with_their_schemas_and_nothing_of_what_they_run(
    plane: ControlPlane, pods: PodTransport
) -> None:
    view = await create(plane)
    assert {server.name: server.state for server in view.servers} == {"talk": "ready"}
    (pod,) = pods.pods.values()
    (server,) = pod.configs[-1]["servers"]
    say = {"properties": {"args": {"type": "array", "items": {"type": "string"}}}, "required": ["args"]}
    assert server["transport"] == {
        "type": "containers",
        "tools": [
            {"name": "say", "description": "Says it.", "inputSchema": {"type": "object", **say}},
            {"name": "shout", "description": "", "inputSchema": {"type": "object"}},
        ],
    }
    assert "secret" not in str(pod.configs)


async def test_a_call_runs_what_the_plan_says_by_the_digest_that_was_pulled(
    plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    gateway = asker(plane, pods, await create(plane))
    assert await gateway.call("say", {"args": ["--help", "a b"]}) == {
        "id": "r1",
        "ok": True,
        "outcome": {
            "exitCode": 0,
            "note": None,
            "cut": [],
            "stdout": base64.b64encode(b"--help a b").decode(),
            "stderr": "",
        },
    }
    assert engine.runs.started == [
        RunSpec(
            image=f"acme/say:1@sha256:{'0' * 64}",
            command=("--help", "a b"),
            limits=Limits(memory_mib=64, cpus=1.0, pids=256),
            timeout_s=60.0,
            env={"TALK_KEY": "secret"},
            user="nobody",
        )
    ]
    await gateway.call("shout", {})
    assert (engine.runs.started[-1].command, engine.runs.started[-1].timeout_s) == (None, 5.0)


@pytest.mark.parametrize(
    ("server", "tool", "arguments", "why"),
    [
        ("talk", "say", {}, '"args" is a required property'),
        ("talk", "whisper", {}, "Server 'talk' of this sandbox has no tool 'whisper' any more"),
        ("time", "say", {"args": []}, "Server 'time' of this sandbox has no tool 'say' any more"),
    ],
)
async def test_what_the_plan_does_not_have_or_the_schema_refuses_is_not_run(
    plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport, server: str, tool: str, arguments: Any, why: str
) -> None:
    gateway = asker(plane, pods, await create(plane))
    answer = await gateway.call(tool, arguments, server)
    assert (answer["ok"], why in answer["message"]) == (False, True)
    assert engine.runs.started == []


async def test_an_engine_that_is_away_is_told_and_the_next_call_works(
    plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    gateway = asker(plane, pods, await create(plane))
    engine.is_away = True
    assert "The container engine does not answer" in (await gateway.call("shout", {}))["message"]
    engine.is_away = False
    assert (await gateway.call("shout", {}))["ok"]
    await engine.remove_image("acme/shout:1")
    assert "is not on the container engine any more" in (await gateway.call("shout", {}))["message"]


async def sleep_for_ever(spec: RunSpec, output: OutputKeeper) -> int:
    await asyncio.Event().wait()
    return 0


async def test_four_calls_run_side_by_side_and_a_fifth_waits_for_one_to_end(
    plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    gateway = asker(plane, pods, await create(plane))
    engine.runs.program = sleep_for_ever
    asked = [await gateway.ask("shout", {}) for _ in range(5)]
    await until(lambda: len(engine.runs.running) == 4)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(engine.runs.started) == 4
    await gateway.take_back(asked[1])
    await until(lambda: len(engine.runs.started) == 5)
    assert len(engine.runs.running) == 4


async def test_a_long_call_holds_up_no_configuration_of_the_workspace(
    plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    gateway = asker(plane, pods, await create(plane))
    engine.runs.program = sleep_for_ever
    await gateway.ask("shout", {})
    await until(lambda: engine.runs.running)
    (pod,) = pods.pods.values()
    await pod.requests.put({"id": "c1", "mcp": {**KEY, "time": {}}, "token": "t"})
    assert await gateway.answer() == {"id": "c1", "ok": True}
    assert len(engine.runs.running) == 1


@pytest.mark.parametrize("end", ["take back", "pause", "kill"])
async def test_a_call_that_nobody_waits_for_any_more_is_ended(
    plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport, end: str
) -> None:
    view = await create(plane)
    gateway = asker(plane, pods, view)
    engine.runs.program = sleep_for_ever
    identifier = await gateway.ask("shout", {})
    await until(lambda: engine.runs.running)
    match end:
        case "take back":
            await gateway.take_back(identifier)
        case "pause":
            await plane.service.pause(plane.team_id, view.sandbox.id, PauseMode.MEMORY)
        case _:
            await plane.service.kill(plane.team_id, view.sandbox.id)
    await until(lambda: not engine.runs.running)


async def test_an_image_that_cannot_be_had_fails_the_create_with_server_and_image(
    plane: ControlPlane, engine: InMemoryEngine
) -> None:
    del engine.builds.registry["acme/shout:1"]
    with pytest.raises(ServerStartFailed, match="'talk' needs the image acme/shout:1"):
        await create(plane)


async def test_a_plan_is_the_same_when_it_was_recorded(plane: ControlPlane) -> None:
    view = await create(plane)
    live = plane.directory.find(view.sandbox.id)
    assert live is not None
    plan = live.sandbox.secrets.gateway
    assert plan is not None
    assert GatewayPlan.from_json(plan.as_json()) == plan
    assert plan.container_tools["talk"].env == {"TALK_KEY": "secret"}
    assert "secret" not in repr(plan)


async def test_container_tools_come_and_go_in_a_running_sandbox_and_outlive_the_catalog(
    start_control_plane: StartControlPlane, own_servers: Path, engine: InMemoryEngine, pods: PodTransport
) -> None:
    engine.builds.registry |= {"acme/say:1": {}, "acme/shout:1": {}}
    async with start_control_plane(own_servers=own_servers) as plane:
        view = await create(plane, mcp={})
        added = await plane.service.change_servers(plane.team_id, view.sandbox.id, KEY, None)
        assert [server.state for server in added.servers] == ["ready"]
        assert (await asker(plane, pods, view).call("shout", {}))["ok"]
    (own_servers / "talk.yaml").unlink()
    async with start_control_plane(own_servers=own_servers) as plane:
        await until(lambda: plane.directory.find(view.sandbox.id))
        gateway = asker(plane, pods, view)
        assert (await gateway.call("shout", {}))["ok"]
        await plane.service.change_servers(plane.team_id, view.sandbox.id, {"talk": None}, None)
        assert "has no tool 'shout' any more" in (await gateway.call("shout", {}))["message"]


# -- files -----------------------------------------------------------------------------------------------------------

MOUNTS = (MountedVolume("v1", "media", "/data"), MountedVolume("v2", "inner", "/data/inner"))


def mounts_of(path: str, *, text: str = "{{path}}:{{path}}", among: tuple[MountedVolume, ...] = MOUNTS) -> Any:
    tool = ContainerTool.model_validate(
        {"name": "t", "container": {"image": "i", "volumes": (text, text)}, "parameters": {"properties": {"path": {}}}}
    )
    server = ContainerTools(tools=(tool,), env={}, limits=Limits(memory_mib=64, cpus=1, pids=8), has_network=True)
    return make_run(server, tool, {"path": path}, among).mounts


def test_a_path_in_a_volume_of_the_sandbox_brings_the_volume_where_the_workspace_has_it() -> None:
    assert mounts_of("/data/films/a.mp4") == (VolumeMount(volume="v1", path="/data"),)
    assert mounts_of("/data/inner/x") == (VolumeMount(volume="v2", path="/data/inner"),)
    assert mounts_of("/data") == (VolumeMount(volume="v1", path="/data"),)
    assert mounts_of("/data", text="{{path}}:/work:ro") == (VolumeMount(volume="v1", path="/work", read_only=True),)


@pytest.mark.parametrize("path", ["/home/user", "/", "/database", "/data/../etc", "/var/run/docker.sock"])
def test_a_path_elsewhere_is_refused_with_what_to_do(path: str) -> None:
    with pytest.raises(CallError, match="in the sandbox's volumes only, not /.*Put the files below /data or /data/inn"):
        mounts_of(path)
    with pytest.raises(CallError, match="Create the sandbox with volumeMounts, and put them there"):
        mounts_of(path, among=())


def test_a_part_of_a_volume_stays_where_it_is() -> None:
    with pytest.raises(CallError, match="/data/films is a part of a volume, and only the whole of it can be at /work"):
        mounts_of("/data/films", text="{{path}}:/work")
