"""What servers list is remembered by the sandbox that starts them, and told to the gateway of the next."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from app.errors import Conflict, InvalidRequest, ServerStartFailed
from app.sandboxes.models import McpOptions, PauseMode
from tests.in_process import ControlPlane, StartControlPlane, request
from tests.pods import PodTransport
from tests.waiting import BOUND_S

TIME = {"digest": "sha256:time", "tools": [{"name": "time-tool"}]}


async def until_remembered(control_plane: ControlPlane, pods: PodTransport, mcp: Mapping[str, Any]) -> dict[str, Any]:
    """Create sandboxes until the gateway of one is told what its servers listed; that configuration."""
    async with asyncio.timeout(BOUND_S):
        while True:
            view = await control_plane.service.create(control_plane.team_id, request(mcp=mcp))
            pod = await control_plane.store.pod_of(view.sandbox.id)
            assert pod is not None
            config = pods.pod(f"{pod.id}.pod").configs[-1]
            if any("remembered" in server for server in config["servers"]):
                return config


async def test_the_next_sandbox_lists_at_once_what_this_one_learned(
    control_plane: ControlPlane, pods: PodTransport
) -> None:
    config = await until_remembered(control_plane, pods, {"time": {}})
    assert config["servers"][0]["remembered"] == TIME


async def test_a_create_does_not_wait_for_a_server_that_is_remembered(
    control_plane: ControlPlane, pods: PodTransport
) -> None:
    await until_remembered(control_plane, pods, {"time": {}})
    pods.never_ready.add("time")
    view = await control_plane.service.create(control_plane.team_id, request(mcp={"time": {}}))
    (server,) = view.servers
    assert (server.state, server.listed) == ("starting", True)


async def test_memory_is_kept_over_a_restart(start_control_plane: StartControlPlane, pods: PodTransport) -> None:
    async with start_control_plane() as first:
        await until_remembered(first, pods, {"time": {}})
    async with start_control_plane() as second:
        view = await second.service.create(second.team_id, request(mcp={"time": {}}))
        pod = await second.store.pod_of(view.sandbox.id)
        assert pod is not None
        assert pods.pod(f"{pod.id}.pod").configs[-1]["servers"][0]["remembered"] == TIME


async def test_another_team_remembers_for_itself(control_plane: ControlPlane, pods: PodTransport) -> None:
    await until_remembered(control_plane, pods, {"time": {}})
    other = await control_plane.accounts.create_team("other")
    view = await control_plane.service.create(other.id, request(mcp={"time": {}}))
    pod = await control_plane.store.pod_of(view.sandbox.id)
    assert pod is not None
    assert "remembered" not in pods.pod(f"{pod.id}.pod").configs[-1]["servers"][0]


async def test_another_configuration_is_remembered_apart(control_plane: ControlPlane, pods: PodTransport) -> None:
    await until_remembered(control_plane, pods, {"time": {}})
    config = {"time": {"localTimezone": "Europe/Vienna"}}
    view = await control_plane.service.create(control_plane.team_id, request(mcp=config))
    pod = await control_plane.store.pod_of(view.sandbox.id)
    assert pod is not None
    assert "remembered" not in pods.pod(f"{pod.id}.pod").configs[-1]["servers"][0]


async def test_what_a_server_lists_is_not_remembered_for_how_it_was_configured_before(
    control_plane: ControlPlane, pods: PodTransport
) -> None:
    service, team_id = control_plane.service, control_plane.team_id
    pods.listing.clear()
    sandbox = (await service.create(team_id, request(mcp={"time": {}}))).sandbox
    changed = {"time": {"localTimezone": "Europe/Vienna"}}
    await service.change_servers(team_id, sandbox.id, changed, None)
    pods.listing.set()
    await until_remembered(control_plane, pods, changed)
    view = await service.create(team_id, request(mcp={"time": {}}))
    pod = await control_plane.store.pod_of(view.sandbox.id)
    assert pod is not None
    assert "remembered" not in pods.pod(f"{pod.id}.pod").configs[-1]["servers"][0]


async def test_servers_are_added_and_removed_while_a_sandbox_runs(
    control_plane: ControlPlane, pods: PodTransport
) -> None:
    service, team_id = control_plane.service, control_plane.team_id
    sandbox = (await service.create(team_id, request(mcp={"time": {}}))).sandbox
    rules = McpOptions(tools={"fetch": {"allow": ["fetch_*"]}}, discovery=True)
    view = await service.change_servers(team_id, sandbox.id, {"fetch": {}, "time": None}, rules)
    assert [server.name for server in view.servers] == ["fetch"]
    (pod,) = pods.pods.values()
    config = pod.configs[-1]
    assert config["discovery"] is True
    assert [(server["name"], server["tools"]) for server in config["servers"]] == [("fetch", {"allow": ["fetch_*"]})]
    assert config["tokens"] == pod.configs[0]["tokens"]
    assert (await service.get(team_id, sandbox.id)).sandbox.secrets.mcp == {"fetch": {}}


async def test_servers_that_cannot_be_changed_are_refused(control_plane: ControlPlane, pods: PodTransport) -> None:
    service, team_id = control_plane.service, control_plane.team_id
    bare = (await service.create(team_id, request())).sandbox
    with pytest.raises(Conflict, match="no gateway"):
        await service.change_servers(team_id, bare.id, {"time": {}}, None)
    sandbox = (await service.create(team_id, request(mcp={"time": {}}))).sandbox
    with pytest.raises(InvalidRequest, match="Did you mean 'time'"):
        await service.change_servers(team_id, sandbox.id, {"tiem": {}}, None)
    pods.failing["fetch"] = ["no route"]
    with pytest.raises(ServerStartFailed, match="no route"):
        await service.change_servers(team_id, sandbox.id, {"fetch": {}}, None)
    await service.pause(team_id, sandbox.id, PauseMode.MEMORY)
    with pytest.raises(Conflict, match="paused"):
        await service.change_servers(team_id, sandbox.id, {"fetch": None}, None)
