"""Metrics, logs and teams over the wire, as E2B's SDKs and its CLI read them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.accounts import Team
from app.engines.in_memory_engine import InMemoryEngine
from app.sandboxes.journal import Level
from tests.api.calls import assert_error, create
from tests.in_process import ControlPlane, StartControlPlane
from tests.pods import PodTransport
from tests.waiting import BOUND_S


@pytest.fixture
async def other_team(app: FastAPI, control_plane: ControlPlane) -> httpx.AsyncClient:
    team = await control_plane.accounts.create_team("other")
    key = await control_plane.accounts.create_key(Team(team.id, "other"), "test")
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gate", headers={"X-API-KEY": key})


@pytest.fixture
def usage(pods: PodTransport) -> dict[str, float]:
    pods.metrics = {
        "cpu_count": 2,
        "cpu_used_pct": 12.5,
        "mem_used": 10,
        "mem_total": 100,
        "mem_cache": 1,
        "disk_used": 5,
        "disk_total": 50,
    }
    return pods.metrics


async def test_metrics_have_what_the_sdks_need(api: httpx.AsyncClient, usage: dict[str, float]) -> None:
    sandbox_id = (await create(api))["sandboxID"]
    (sample,) = (await api.get(f"/sandboxes/{sandbox_id}/metrics")).json()
    moment = datetime.fromisoformat(sample.pop("timestamp"))
    assert sample.pop("timestampUnix") == int(moment.timestamp())
    assert sample == {
        "cpuCount": 2,
        "cpuUsedPct": 12.5,
        "memUsed": 10,
        "memTotal": 100,
        "memCache": 1,
        "diskUsed": 5,
        "diskTotal": 50,
    }
    at = int(moment.timestamp())
    for start, end, found in ((at, at, 1), (at + 1, None, 0), (None, at - 1, 0), (None, 253402300799, 1)):
        query = {key: value for key, value in (("start", start), ("end", end)) if value is not None}
        assert len((await api.get(f"/sandboxes/{sandbox_id}/metrics", params=query)).json()) == found
    latest = (await api.get("/sandboxes/metrics", params={"sandbox_ids": f"{sandbox_id},iunknown"})).json()
    assert list(latest["sandboxes"]) == [sandbox_id]
    assert latest["sandboxes"][sandbox_id]["cpuUsedPct"] == 12.5


async def test_metrics_of_what_is_not_there_are_refused(
    api: httpx.AsyncClient, other_team: httpx.AsyncClient, usage: dict[str, float]
) -> None:
    sandbox_id = (await create(api))["sandboxID"]
    assert_error(await api.get("/sandboxes/iunknown/metrics"), 404, "iunknown")
    assert_error(await other_team.get(f"/sandboxes/{sandbox_id}/metrics"), 404)
    assert (await other_team.get("/sandboxes/metrics", params={"sandbox_ids": sandbox_id})).json() == {"sandboxes": {}}
    for query in ({"start": -1}, {"end": "soon"}, {"start": 10**15}):
        assert_error(await api.get(f"/sandboxes/{sandbox_id}/metrics", params=query), 400)
    many = ",".join(f"i{number}" for number in range(101))
    assert_error(await api.get("/sandboxes/metrics", params={"sandbox_ids": many}), 400, "100")
    assert_error(await api.get("/sandboxes/metrics"), 400, "sandbox_ids")


async def written(api: httpx.AsyncClient, engine: InMemoryEngine, control_plane: ControlPlane) -> str:
    """Id of a sandbox with a log of known entries, in this order of time."""
    sandbox_id: str = (await create(api, mcp={"time": {}}))["sandboxID"]
    live = control_plane.directory.find(sandbox_id)
    assert live is not None
    control_plane.journal.record(sandbox_id, "First of all", level=Level.DEBUG)
    control_plane.journal.record(sandbox_id, "Sandbox started", template="base")
    engine.write_log(live.pod.id, "workspace", "2026-01-01 00:00:00,000 INFO sandgate_agent.server ready")
    engine.write_log(
        live.pod.id, "gateway", "2026-01-01 00:00:00,000 WARNING sandgate.server: server time is restarted"
    )
    engine.write_log(live.pod.id, "gateway", "Traceback (most recent call last):")
    return sandbox_id


def messages(answer: httpx.Response) -> list[tuple[str, str]]:
    return [(entry["fields"]["logger"], entry["message"]) for entry in answer.json()["logs"]]


ENTRIES = [
    ("sandgate", "First of all"),
    ("sandgate", "Sandbox started"),
    ("agent", "sandgate_agent.server ready"),
    ("gateway", "sandgate.server: server time is restarted"),
    ("gateway", "Traceback (most recent call last):"),
]


async def test_logs_hold_what_became_of_it_and_what_its_containers_say(
    api: httpx.AsyncClient, engine: InMemoryEngine, control_plane: ControlPlane
) -> None:
    at = f"/v2/sandboxes/{await written(api, engine, control_plane)}/logs"
    told = await api.get(at)
    assert [entry for entry in messages(told) if entry in ENTRIES] == ENTRIES
    assert [entry["level"] for entry in told.json()["logs"][-2:]] == ["warn", "warn"]
    backward = messages(await api.get(at, params={"direction": "backward"}))
    assert backward == messages(told)[::-1]
    assert messages(await api.get(at, params={"level": "warn"}))[-2:] == ENTRIES[-2:]
    assert messages(await api.get(at, params={"search": "restarted"})) == [ENTRIES[3]]
    assert messages(await api.get(at, params={"limit": 1, "direction": "backward"})) == [ENTRIES[-1]]
    middle = told.json()["logs"][-3]
    cursor = int(datetime.fromisoformat(middle["timestamp"]).timestamp() * 1000)
    assert ENTRIES[2] in messages(await api.get(at, params={"cursor": cursor}))
    assert ENTRIES[0] not in messages(await api.get(at, params={"cursor": cursor}))
    assert ENTRIES[0] in messages(await api.get(at, params={"cursor": cursor, "direction": "backward"}))


async def test_lines_are_what_the_cli_parses(
    api: httpx.AsyncClient, engine: InMemoryEngine, control_plane: ControlPlane
) -> None:
    sandbox_id = await written(api, engine, control_plane)
    body: dict[str, Any] = (await api.get(f"/sandboxes/{sandbox_id}/logs")).json()
    lines = [json.loads(log["line"]) for log in body["logs"]]
    assert {"logger": "sandgate", "template": "base", "level": "info", "message": "Sandbox started"} in lines
    assert [line["message"] for line in lines] == [entry["message"] for entry in body["logEntries"]]
    last = int(datetime.fromisoformat(body["logs"][-1]["timestamp"]).timestamp() * 1000)
    assert (await api.get(f"/sandboxes/{sandbox_id}/logs", params={"start": last + 1})).json()["logs"] == []
    assert len((await api.get(f"/sandboxes/{sandbox_id}/logs", params={"limit": 2})).json()["logs"]) == 2


async def test_a_sandbox_that_has_ended_still_has_its_log(
    api: httpx.AsyncClient, other_team: httpx.AsyncClient, control_plane: ControlPlane
) -> None:
    sandbox_id = (await create(api))["sandboxID"]
    await api.delete(f"/sandboxes/{sandbox_id}")
    control_plane.journal.record(sandbox_id, "Sandbox killed")
    assert ("sandgate", "Sandbox killed") in messages(await api.get(f"/v2/sandboxes/{sandbox_id}/logs"))
    assert_error(await other_team.get(f"/v2/sandboxes/{sandbox_id}/logs"), 404)
    assert_error(await api.get("/v2/sandboxes/iunknown/logs"), 404)


async def test_an_engine_that_is_away_leaves_the_rest_of_the_log(
    api: httpx.AsyncClient, engine: InMemoryEngine, control_plane: ControlPlane
) -> None:
    sandbox_id = await written(api, engine, control_plane)
    engine.is_away = True
    assert ENTRIES[1] in messages(await api.get(f"/v2/sandboxes/{sandbox_id}/logs"))


@pytest.mark.parametrize("query", [{"limit": 1001}, {"cursor": -1}, {"direction": "up"}, {"level": "loud"}])
async def test_bad_input_is_told_of(api: httpx.AsyncClient, query: dict[str, Any]) -> None:
    sandbox_id = (await create(api))["sandboxID"]
    assert_error(await api.get(f"/v2/sandboxes/{sandbox_id}/logs", params=query), 400, *query)


async def test_a_key_has_one_team_and_is_told_no_other_key(api: httpx.AsyncClient, control_plane: ControlPlane) -> None:
    await control_plane.accounts.create_key(Team(control_plane.team_id, "test"), "another")
    key = api.headers["X-API-KEY"]
    team = {"teamID": control_plane.team_id, "name": "test", "apiKey": key, "isDefault": True}
    assert (await api.get("/teams")).json() == [team]
    bearer = await api.get("/teams", headers={"X-API-KEY": "", "Authorization": f"Bearer {key}"})
    assert bearer.json() == [team]
    assert_error(await api.get("/teams", headers={"X-API-KEY": "e2b_" + "0" * 40}), 401)


async def test_pools_are_told(start_control_plane: StartControlPlane, app: FastAPI, api: httpx.AsyncClient) -> None:
    assert (await api.get("/api/v1/pools")).json() == {"pools": []}
    async with start_control_plane(warm=2) as with_pool:
        app.state.parts = replace(app.state.parts, service=with_pool.service)
        async with asyncio.timeout(BOUND_S):
            while (pools := (await api.get("/api/v1/pools")).json()["pools"]) == [] or pools[0]["waiting"] < 2:
                await asyncio.sleep(0.002)
    counts = {"wanted": 2, "waiting": 2, "warmCreates": 0, "coldCreates": 0, "replaced": 0}
    assert pools == [{"templates": ["base"], "size": 2, **counts}]
