"""MCP servers that run from an image: fetched when they are needed, attached to a pod, added and removed later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from app.engines.in_memory_engine import InMemoryEngine
from app.errors import InvalidRequest, ServerStartFailed
from app.sandboxes.models import McpOptions, PauseMode, ServerStatus, Status
from app.sandboxes.service import SandboxView
from tests.in_process import ControlPlane, StartControlPlane, request
from tests.pods import PodTransport
from tests.waiting import BOUND_S, until

PLAIN = ("shot", "scan", *(f"more{n}" for n in range(8)))
DEGRADE = McpOptions(on_failure="degrade")


def manifest(name: str, more: str = "") -> str:
    return f"name: {name}\ntitle: {name}\ntype: server\nimage: acme/{name}:1\n{more}"


@pytest.fixture
def own_servers(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    for name in PLAIN:
        (folder / f"{name}.yaml").write_text(manifest(name))
    secret = "secrets: [{name: keyed.api_key, env: API_KEY, required: true}]\n"
    (folder / "keyed.yaml").write_text(manifest("keyed", secret))
    (folder / "alone.yaml").write_text(
        manifest("alone", "disableNetwork: true\ncapabilities: [CHOWN]\nlimits: {memoryMib: 64, pids: 20}\n")
    )
    return folder


@pytest.fixture
async def plane(
    start_control_plane: StartControlPlane, own_servers: Path, engine: InMemoryEngine
) -> AsyncIterator[ControlPlane]:
    engine.builds.registry |= {f"acme/{name}:1": {} for name in (*PLAIN, "keyed", "alone")}
    async with start_control_plane(own_servers=own_servers) as plane:
        yield plane


async def create(plane: ControlPlane, *keys: str, **fields: object) -> SandboxView:
    return await plane.service.create(plane.team_id, request(mcp={key: {} for key in keys}, **fields))


def pod_of(plane: ControlPlane, view: SandboxView) -> str:
    live = plane.directory.find(view.sandbox.id)
    assert live is not None
    return live.pod.id


def states(servers: tuple[ServerStatus, ...]) -> dict[str, str]:
    return {server.name: server.state for server in servers}


def told(pods: PodTransport, pod_id: str) -> dict[str, Mapping[str, Any]]:
    """Transports by server, as the gateway was told last."""
    return {one["name"]: one["transport"] for one in pods.pod(f"{pod_id}.pod").configs[-1]["servers"]}


async def test_an_image_that_is_not_there_is_pulled_and_run_by_its_digest(
    plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    view = await create(plane, "shot", "alone")
    assert states(view.servers) == {"shot": "ready", "alone": "ready"}
    pod_id = pod_of(plane, view)
    shot, alone = engine.attached_to(pod_id).values()
    assert shot.image == "acme/shot:1@sha256:" + "0" * 64
    files = {file.path: file for file in shot.files}
    assert set(files) == {"/.sandgate/stdio-bridge", "/.sandgate/greeting"}
    transport = told(pods, pod_id)["shot"]
    assert files["/.sandgate/greeting"].content.decode() == f"{transport['token']}\n"
    assert (shot.has_network, shot.capabilities, shot.new_privileges) == (True, (), False)
    assert (alone.has_network, alone.capabilities) == (False, ("CHOWN",))
    assert (alone.limits.memory_mib, alone.limits.pids) == (64, 20)
    assert told(pods, pod_id)["alone"]["type"] == transport["type"] == "bridge"
    assert told(pods, pod_id)["alone"]["token"] != transport["token"]


async def test_while_an_image_is_pulled_its_server_tells_how_far_it_is(
    plane: ControlPlane, engine: InMemoryEngine
) -> None:
    engine.builds.may_pull.clear()
    creating = asyncio.create_task(create(plane, "shot"))
    await until(lambda: engine.builds.logins)
    (sandbox,) = await plane.store.page(
        plane.team_id,
        states=[Status.STARTING],
        template=None,
        started_after=None,
        is_ascending=True,
        after=None,
        limit=1,
    )
    (server,) = (await plane.service.get(plane.team_id, sandbox.id)).servers
    assert (server.state, server.message) == ("starting", "waits for image acme/shot:1: 1 of 2 layers")
    engine.builds.may_pull.set()
    assert states((await creating).servers) == {"shot": "ready"}
    assert states((await plane.service.get(plane.team_id, sandbox.id)).servers) == {"shot": "ready"}


async def test_two_sandboxes_wait_for_one_pull(plane: ControlPlane, engine: InMemoryEngine) -> None:
    engine.builds.may_pull.clear()
    both = [asyncio.create_task(create(plane, "shot")) for _ in range(2)]
    await until(lambda: engine.builds.logins)
    engine.builds.may_pull.set()
    for creating in both:
        assert states((await creating).servers) == {"shot": "ready"}
    assert len(engine.builds.logins) == 1


async def test_an_image_that_cannot_be_pulled_fails_the_create_with_the_reason(
    plane: ControlPlane, engine: InMemoryEngine
) -> None:
    del engine.builds.registry["acme/shot:1"]
    with pytest.raises(ServerStartFailed, match="'shot' needs the image acme/shot:1, .*: no such image") as caught:
        await create(plane, "shot")
    assert caught.value.status == 424


async def test_one_that_cannot_be_pulled_is_told_beside_those_that_run(
    plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    del engine.builds.registry["acme/shot:1"]
    view = await create(plane, "shot", "scan", mcp_options=DEGRADE)
    assert states(view.servers) == {"scan": "ready", "shot": "failed"}
    assert list(told(pods, pod_of(plane, view))) == ["scan"]
    again = await plane.service.get(plane.team_id, view.sandbox.id)
    assert states(again.servers) == {"scan": "ready", "shot": "failed"}
    engine.builds.registry["acme/shot:1"] = {}
    changed = await plane.service.change_servers(plane.team_id, view.sandbox.id, {"shot": {}}, None)
    assert states(changed.servers) == {"scan": "ready", "shot": "ready"}


async def test_image_servers_come_and_go_in_a_running_sandbox(
    plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    view = await create(plane, "shot")
    pod_id, before = pod_of(plane, view), dict(engine.attached_to(pod_of(plane, view)))
    change = plane.service.change_servers
    added = await change(plane.team_id, view.sandbox.id, {"scan": {}}, None)
    assert states(added.servers) == {"shot": "ready", "scan": "ready"}
    assert engine.attached_to(pod_id)["server-0"] is not None
    assert set(engine.attached_to(pod_id)) == {"server-0", "server-1"}
    assert engine.attached_to(pod_id)["server-0"].files == before["server-0"].files
    await change(plane.team_id, view.sandbox.id, {"shot": None}, None)
    assert set(engine.attached_to(pod_id)) == {"server-1"}
    assert list(told(pods, pod_id)) == ["scan"]


async def test_a_server_with_another_credential_gets_another_container_and_another_token(
    plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    view = await plane.service.create(plane.team_id, request(mcp={"keyed": {"apiKey": "first"}}))
    pod_id = pod_of(plane, view)
    first = told(pods, pod_id)["keyed"]
    await plane.service.change_servers(plane.team_id, view.sandbox.id, {"keyed": {"apiKey": "second"}}, None)
    (container,) = engine.attached_to(pod_id).values()
    assert container.env == {"API_KEY": "second"}
    assert told(pods, pod_id)["keyed"] != first


async def test_any_number_of_image_servers_has_room_in_a_sandbox(plane: ControlPlane, engine: InMemoryEngine) -> None:
    view = await create(plane, *(f"more{n}" for n in range(8)))
    await plane.service.change_servers(plane.team_id, view.sandbox.id, {"shot": {}, "scan": {}}, None)
    assert set(engine.attached_to(pod_of(plane, view))) == {f"server-{n}" for n in range(10)}


async def test_a_warm_pod_is_given_image_servers(
    start_control_plane: StartControlPlane, own_servers: Path, engine: InMemoryEngine, pods: PodTransport
) -> None:
    engine.builds.registry["acme/shot:1"] = {}
    async with start_control_plane(own_servers=own_servers, warm=1, warm_template="mcp-gateway") as plane:
        async with asyncio.timeout(BOUND_S):
            while not (waiting := [pod for pod in (await plane.store.pods()).values() if pod.address is not None]):
                await asyncio.sleep(0.002)
        view = await create(plane, "shot")
        assert pod_of(plane, view) == waiting[0].id
        assert set(engine.attached_to(waiting[0].id)) == {"server-0"}


async def test_a_container_that_the_engine_refuses_is_told_and_left_out(
    plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    engine.refused_roles = {"server-0": "unable to find user nobody"}
    with pytest.raises(ServerStartFailed, match="'shot' cannot be run in a container: unable to find user nobody"):
        await create(plane, "shot")
    view = await create(plane, "shot", "scan", mcp_options=DEGRADE)
    assert states(view.servers) == {"scan": "ready", "shot": "failed"}
    assert list(told(pods, pod_of(plane, view))) == ["scan"]


async def test_what_was_planned_holds_when_the_catalog_has_changed(
    start_control_plane: StartControlPlane, own_servers: Path, engine: InMemoryEngine, pods: PodTransport
) -> None:
    engine.builds.registry |= {"acme/shot:1": {}, "acme/scan:1": {}, "acme/shot:2": {}}
    async with start_control_plane(own_servers=own_servers) as plane:
        view = await create(plane, "shot", "scan")
        pod_id = pod_of(plane, view)
        before = told(pods, pod_id)
    (own_servers / "scan.yaml").unlink()
    (own_servers / "shot.yaml").write_text(manifest("shot").replace("shot:1", "shot:2"))
    async with start_control_plane(own_servers=own_servers) as plane:
        await plane.service.pause(plane.team_id, view.sandbox.id, PauseMode.FILESYSTEM)
        await plane.service.connect(plane.team_id, view.sandbox.id, 60)
        assert told(pods, pod_id) == before
        added = await plane.service.change_servers(plane.team_id, view.sandbox.id, {"time": {}}, None)
        assert set(states(added.servers)) == {"shot", "scan", "time"}
        assert {key: told(pods, pod_id)[key] for key in before} == before
        assert {container.image for container in engine.attached_to(pod_id).values()} == {
            f"acme/{name}:1@sha256:{'0' * 64}" for name in ("shot", "scan")
        }
        # One that is asked for in other words is another server, and there is no such entry any more.
        with pytest.raises(InvalidRequest, match="there is no MCP server 'scan'"):
            await plane.service.change_servers(plane.team_id, view.sandbox.id, {"scan": {"option": 1}}, None)


async def test_a_server_that_was_not_to_be_had_is_known_after_a_restart(
    start_control_plane: StartControlPlane, own_servers: Path
) -> None:
    async with start_control_plane(own_servers=own_servers) as plane:
        view = await create(plane, "shot", "time", mcp_options=DEGRADE)
    async with start_control_plane(own_servers=own_servers) as plane:
        servers = (await plane.service.get(plane.team_id, view.sandbox.id)).servers
        assert states(servers) == {"time": "ready", "shot": "failed"}
        assert "Ask for it again" in str(servers[-1].message)


async def test_servers_are_found_by_the_tools_they_listed(
    start_control_plane: StartControlPlane, own_servers: Path, engine: InMemoryEngine
) -> None:
    engine.builds.registry["acme/shot:1"] = {}
    async with start_control_plane(own_servers=own_servers) as plane:
        await create(plane, "shot")
        await until(lambda: "shot" in [one.key for one in plane.catalog.search("shot-tool")])
    async with start_control_plane(own_servers=own_servers) as plane:
        await until(lambda: "shot" in [one.key for one in plane.catalog.search("shot-tool")])


async def test_the_command_in_the_workspace_brings_image_servers_and_outlives_an_engine_that_is_away(
    plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    view = await create(plane)
    pod_id = pod_of(plane, view)
    pod = pods.pod(f"{pod_id}.pod")

    async def ask(identifier: str, *keys: str) -> dict[str, Any]:
        await pod.requests.put({"id": identifier, "mcp": {key: {} for key in keys}, "token": "t"})
        async with asyncio.timeout(BOUND_S):
            return await pod.settled.get()

    assert await ask("r1", "shot") == {"id": "r1", "ok": True}
    assert set(engine.attached_to(pod_id)) == {"server-0"}
    engine.is_away = True
    refused = await ask("r2", "shot", "scan")
    assert not refused["ok"]
    assert "The container engine does not answer" in refused["message"]
    engine.is_away = False
    assert await ask("r3", "shot", "scan") == {"id": "r3", "ok": True}
    assert set(engine.attached_to(pod_id)) == {"server-0", "server-1"}
