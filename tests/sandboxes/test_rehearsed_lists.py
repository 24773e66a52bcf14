"""What a server listed when it was tried beforehand is what any team's first sandbox lists until it has started."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from app.catalog.rehearsals import Rehearsal, rehearsals_of
from app.sandboxes.models import McpOptions
from app.sandboxes.server_lists import LARGEST, Lists
from app.sandboxes.tool_memory import ToolMemory
from app.sandboxes.tool_search import ToolSearch
from tests.in_process import ControlPlane, request
from tests.pods import PodTransport
from tests.waiting import BOUND_S


def lists_of(*tools: str) -> Lists:
    content = orjson.dumps({"digest": f"sha256:{tools}", "tools": [{"name": tool} for tool in tools]})
    return Lists(f"sha256:{tools}", content)


async def keep(control_plane: ControlPlane, key: str, *listed: Lists | None) -> tuple[Rehearsal, ...]:
    """Let the rehearsals of a server have come to this, in their order."""
    definition = control_plane.catalog.find(key)
    assert definition is not None
    rehearsals = rehearsals_of(definition)
    await control_plane.memory.rehearsed.keep(definition.name, zip(rehearsals, listed, strict=True))
    return rehearsals


async def told(control_plane: ControlPlane, pods: PodTransport, key: str, **options: Any) -> Any:
    """The tools that the gateway of a new team's first sandbox is told its server has; None for none."""
    team = await control_plane.accounts.create_team("new")
    pods.never_ready.add(key)
    wanted = request(mcp={key: options}, mcp_options=McpOptions(wait=False))
    view = await control_plane.service.create(team.id, wanted)
    pod = await control_plane.store.pod_of(view.sandbox.id)
    assert pod is not None
    (server,) = pods.pod(f"{pod.id}.pod").configs[-1]["servers"]
    return [tool["name"] for tool in server["remembered"]["tools"]] if "remembered" in server else None


async def test_the_first_sandbox_of_any_team_lists_what_was_rehearsed(
    control_plane: ControlPlane, pods: PodTransport
) -> None:
    await keep(control_plane, "time", lists_of("now"))
    assert await told(control_plane, pods, "time") == ["now"]
    assert await told(control_plane, pods, "time", localTimezone="UTC") == ["now"]
    assert await told(control_plane, pods, "time", localTimezone="Europe/Vienna") is None


async def test_what_a_team_saw_itself_counts_for_more(control_plane: ControlPlane, pods: PodTransport) -> None:
    async with asyncio.timeout(BOUND_S):
        while True:
            view = await control_plane.service.create(control_plane.team_id, request(mcp={"time": {}}))
            pod = await control_plane.store.pod_of(view.sandbox.id)
            assert pod is not None
            if "remembered" in pods.pod(f"{pod.id}.pod").configs[-1]["servers"][0]:
                break
    await keep(control_plane, "time", lists_of("now"))
    view = await control_plane.service.create(control_plane.team_id, request(mcp={"time": {}}))
    pod = await control_plane.store.pod_of(view.sandbox.id)
    assert pod is not None
    (server,) = pods.pod(f"{pod.id}.pod").configs[-1]["servers"]
    assert [tool["name"] for tool in server["remembered"]["tools"]] == ["time-tool"]


async def test_credentials_that_can_be_left_out_count_only_where_they_made_a_difference(
    control_plane: ControlPlane, pods: PodTransport
) -> None:
    await keep(control_plane, "awsDataprocessing", lists_of("jobs"), lists_of("jobs"))
    assert await told(control_plane, pods, "awsDataprocessing", awsAccessKeyId="some") == ["jobs"]
    await keep(control_plane, "awsDataprocessing", lists_of("jobs", "more"), lists_of("jobs"))
    assert await told(control_plane, pods, "awsDataprocessing") == ["jobs"]
    assert await told(control_plane, pods, "awsDataprocessing", awsAccessKeyId="some") is None


async def test_a_rehearsal_in_which_nothing_was_listed_tells_nothing(
    control_plane: ControlPlane, pods: PodTransport
) -> None:
    rehearsals = await keep(control_plane, "awsDataprocessing", lists_of("jobs"), None)
    assert await control_plane.memory.rehearsed.has(rehearsals)
    assert await told(control_plane, pods, "awsDataprocessing") is None
    await keep(control_plane, "awsDataprocessing", None, None)
    assert not await control_plane.memory.rehearsed.has(rehearsals)


async def test_lists_of_a_size_that_would_be_a_burden_are_not_kept(control_plane: ControlPlane) -> None:
    rehearsals = await keep(control_plane, "time", lists_of("x" * LARGEST))
    assert not await control_plane.memory.rehearsed.has(rehearsals)


async def test_search_finds_a_server_by_tools_that_another_process_rehearsed(control_plane: ControlPlane) -> None:
    assert await asyncio.to_thread(control_plane.catalog.search, "zeitansage") == []
    memory: ToolMemory = control_plane.memory
    keeping = asyncio.create_task(ToolSearch(memory, control_plane.catalog, interval_s=0.01).keep())
    try:
        await keep(control_plane, "time", lists_of("zeitansage"))
        async with asyncio.timeout(BOUND_S):
            while not (found := await asyncio.to_thread(control_plane.catalog.search, "zeitansage")):
                await asyncio.sleep(0.005)
        assert [definition.key for definition in found] == ["time"]
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
