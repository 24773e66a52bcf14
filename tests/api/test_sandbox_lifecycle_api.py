"""The wire of listing, pausing, forking, saving and repeated creates."""

from __future__ import annotations

import asyncio
import base64
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from app.engines.in_memory_engine import InMemoryEngine
from tests.in_process import Clock, ControlPlane
from tests.pods import PodTransport
from tests.waiting import BOUND_S


async def create(api: httpx.AsyncClient, *, headers: dict[str, str] | None = None, **body: object) -> dict[str, Any]:
    answer = await api.post("/v2/sandboxes", json={"templateID": "base", **body}, headers=headers)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def ids(api: httpx.AsyncClient, path: str = "/v2/sandboxes", **query: object) -> list[str]:
    answer = await api.get(path, params={name: str(value) for name, value in query.items()})
    assert answer.status_code == 200, answer.text
    return [sandbox["sandboxID"] for sandbox in answer.json()]


async def test_pages_follow_each_other_and_stay_right_while_sandboxes_come(api: httpx.AsyncClient) -> None:
    made = [(await create(api))["sandboxID"] for _ in range(5)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        answer = await api.get("/v2/sandboxes", params=query)
        seen += [sandbox["sandboxID"] for sandbox in answer.json()]
        if "x-next-token" not in answer.headers:
            break
        query["nextToken"] = answer.headers["x-next-token"]
        await create(api)
    assert seen == made[::-1]


async def test_the_order_can_be_turned_round(api: httpx.AsyncClient) -> None:
    made = [(await create(api))["sandboxID"] for _ in range(3)]
    first = await api.get("/v2/sandboxes", params={"order": "asc", "limit": 2})
    token = first.headers["x-next-token"]
    assert [sandbox["sandboxID"] for sandbox in first.json()] == made[:2]
    assert await ids(api, order="asc", limit=2, nextToken=token) == made[2:]


async def test_sandboxes_are_found_by_state_template_start_and_metadata(api: httpx.AsyncClient) -> None:
    one = await create(api, metadata={"a b": "c&d", "x": "1"})
    two = await create(api, metadata={"a b": "c&d", "x": "2"})
    three = await create(api, templateID="mcp-gateway")
    await api.post(f"/sandboxes/{two['sandboxID']}/pause")
    both = quote(f"{quote('a b')}={quote('c&d')}")
    assert await ids(api, metadata=both) == [two["sandboxID"], one["sandboxID"]]
    assert await ids(api, metadata=both + quote("&x=2")) == [two["sandboxID"]]
    assert await ids(api, metadata="x=3") == []
    assert await ids(api, state="paused") == [two["sandboxID"]]
    assert await ids(api, state="running,paused", template="base") == [two["sandboxID"], one["sandboxID"]]
    assert await ids(api, template="unknown") == []
    started_at = (await api.get(f"/sandboxes/{three['sandboxID']}")).json()["startedAt"]
    assert await ids(api, startedAfter=started_at) == [three["sandboxID"]]
    assert await ids(api, "/sandboxes") == [three["sandboxID"], one["sandboxID"]]


@pytest.mark.parametrize(
    "query",
    [
        {"nextToken": "nonsense"},
        {"nextToken": "%00"},
        {"limit": "0"},
        {"limit": "101"},
        {"order": "sideways"},
        {"state": "dead"},
        {"startedAfter": "soon"},
        {"startedAfter": "0001-01-01T00:00:00+14:00"},
        {"startedAfter": "9999-12-31T23:59:59-14:00"},
        {"nextToken": base64.urlsafe_b64encode(b"0001-01-01T00:00:00+14:00__i1").decode()},
    ],
)
async def test_a_list_that_cannot_be_made_is_refused(api: httpx.AsyncClient, query: dict[str, str]) -> None:
    answer = await api.get("/v2/sandboxes", params=query)
    assert (answer.status_code, answer.json()["code"]) == (400, 400)
    assert next(iter(query)) in answer.json()["message"]


async def test_a_sandbox_is_paused_and_resumed(api: httpx.AsyncClient) -> None:
    made = await create(api, autoPause=True, autoResume={"enabled": True})
    path = f"/sandboxes/{made['sandboxID']}"
    assert (await api.post(f"{path}/pause")).status_code == 204
    again = await api.post(f"{path}/pause", json={})
    assert (again.status_code, again.json()["code"]) == (409, 409)
    detail = (await api.get(path)).json()
    assert (detail["state"], detail["pauseMode"]) == ("paused", "full")
    assert detail["lifecycle"] == {"onTimeout": "pause", "autoResume": True}
    resumed = await api.post(f"/v2{path}/connect", json={"timeout": 100})
    assert (resumed.status_code, resumed.json()) == (201, made)
    assert (await api.post(f"/v2{path}/connect", json={"timeout": 100})).status_code == 200
    assert (await api.post(f"{path}/resume")).status_code == 409
    await api.post(f"{path}/pause", json={"memory": False})
    assert (await api.get(path)).json()["pauseMode"] == "filesystem"
    assert (await api.post(f"{path}/resume", json={"timeout": 5})).status_code == 201


async def test_an_agent_that_does_not_answer_has_an_error_code(api: httpx.AsyncClient, pods: PodTransport) -> None:
    made = await create(api)
    pods.is_silent = True
    answer = await api.post(f"/sandboxes/{made['sandboxID']}/pause", json={"requireHealthyGuest": True})
    assert answer.status_code == 409
    assert answer.json()["error_code"] == "sandbox_snapshot_guest_agent_unresponsive"


@pytest.mark.parametrize("verb", ["pause", "resume", "connect", "refreshes", "snapshots", "fork", "timeout", "network"])
async def test_what_is_not_there_cannot_be_moved(api: httpx.AsyncClient, verb: str) -> None:
    method = "PUT" if verb == "network" else "POST"
    answer = await api.request(method, f"/sandboxes/inothing/{verb}", json={"timeout": 1})
    assert (answer.status_code, answer.json()["code"]) == (404, 404)


async def test_a_refresh_of_what_is_paused_lengthens_and_never_shortens(
    api: httpx.AsyncClient, control_plane: ControlPlane
) -> None:
    sandbox = await create(api, timeout=60)
    path = f"/sandboxes/{sandbox['sandboxID']}"
    assert (await api.post(f"{path}/pause", json={})).status_code == 204

    async def time_once_woken() -> int:
        found = await control_plane.store.find(sandbox["sandboxID"])
        assert found is not None
        return found.timeout_s

    assert (await api.post(f"{path}/refreshes", json={"duration": 10})).status_code == 204
    assert await time_once_woken() == 60
    assert (await api.post(f"{path}/refreshes", json={"duration": 600})).status_code == 204
    assert await time_once_woken() == 600


async def test_a_refresh_lengthens_and_never_shortens(api: httpx.AsyncClient) -> None:
    made = await create(api, timeout=100)
    path = f"/sandboxes/{made['sandboxID']}"
    before = (await api.get(path)).json()["endAt"]
    assert (await api.post(f"{path}/refreshes", json={"duration": 10})).status_code == 204
    assert (await api.get(path)).json()["endAt"] == before
    assert (await api.post(f"{path}/refreshes", json={"duration": 600})).status_code == 204
    assert (await api.get(path)).json()["endAt"] > before


async def test_forks_are_like_their_source(api: httpx.AsyncClient, engine: InMemoryEngine, pods: PodTransport) -> None:
    made = await create(api, metadata={"a": "b"}, envVars={"K": "v"}, mcp={"time": {}})
    answer = await api.post(f"/sandboxes/{made['sandboxID']}/fork", json={"count": 3, "timeout": 50})
    assert answer.status_code == 201
    copies = [one["sandbox"] for one in answer.json()]
    assert len({copy["sandboxID"] for copy in copies} | {made["sandboxID"]}) == 4
    assert len({copy["mcp"]["token"] for copy in copies} | {made["mcp"]["token"]}) == 4
    detail = (await api.get(f"/sandboxes/{copies[0]['sandboxID']}")).json()
    assert detail["metadata"] == {"a": "b"}
    assert list(detail["mcp"]["servers"]) == ["time"]
    assert [pod.inits[0]["envs"] for pod in pods.pods.values()] == [{"K": "v"}] * 4

    images = {engine.spec_of(pod_id).containers[1].image for pod_id in await engine.observe()}
    (forked,) = images - {"workspace:1"}
    for copy in copies:
        await api.delete(f"/sandboxes/{copy['sandboxID']}")
    async with asyncio.timeout(BOUND_S):
        while await engine.has_image(forked):
            await asyncio.sleep(0.002)


async def test_a_fork_that_fails_says_so_for_each_copy(api: httpx.AsyncClient, pods: PodTransport) -> None:
    made = await create(api, mcp={"time": {}})
    pods.failing["time"] = ["no such zone"]
    (outcome,) = (await api.post(f"/sandboxes/{made['sandboxID']}/fork")).json()
    assert outcome["error"]["code"] == 424
    assert "no such zone" in outcome["error"]["message"]
    assert await ids(api) == [made["sandboxID"]]


@pytest.mark.parametrize("count", [0, 21, -1])
async def test_a_fork_has_one_to_twenty_copies(api: httpx.AsyncClient, count: int) -> None:
    made = await create(api)
    assert (await api.post(f"/sandboxes/{made['sandboxID']}/fork", json={"count": count})).status_code == 400


async def test_a_repeated_create_answers_the_same_sandbox(api: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "once"}
    async with asyncio.TaskGroup() as group:
        creates = [group.create_task(create(api, headers=headers, metadata={"a": "b"})) for _ in range(4)]
    assert len({create.result()["sandboxID"] for create in creates}) == 1
    assert len(await ids(api)) == 1
    other = await api.post("/v2/sandboxes", json={"templateID": "base", "metadata": {}}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, 409)
    await api.delete(f"/sandboxes/{creates[0].result()['sandboxID']}")
    body = {"templateID": "base", "metadata": {"a": "b"}}
    assert (await api.post("/v2/sandboxes", json=body, headers=headers)).status_code == 409


async def test_a_create_that_failed_may_be_repeated_with_its_key(api: httpx.AsyncClient, pods: PodTransport) -> None:
    pods.failing["time"] = []
    headers, body = {"Idempotency-Key": "again"}, {"templateID": "mcp-gateway", "mcp": {"time": {}}}
    assert (await api.post("/v2/sandboxes", json=body, headers=headers)).status_code == 424
    pods.failing.clear()
    assert (await api.post("/v2/sandboxes", json=body, headers=headers)).status_code == 201


async def test_network_rules_are_replaced_as_a_whole(
    api: httpx.AsyncClient, engine: InMemoryEngine, control_plane: ControlPlane
) -> None:
    made = await create(api, network={"denyOut": ["10.0.0.0/8"], "maskRequestHost": "localhost:${PORT}"})
    path = f"/sandboxes/{made['sandboxID']}"
    assert (await api.put(f"{path}/network", json={"denyOut": ["192.168.0.0/16"]})).status_code == 204
    network = (await api.get(path)).json()["network"]
    assert network == {"denyOut": ["192.168.0.0/16"], "maskRequestHost": "localhost:${PORT}"}
    assert (await api.put(f"{path}/network", json={})).status_code == 204
    assert (await api.get(path)).json()["network"] == {"maskRequestHost": "localhost:${PORT}"}
    bad = await api.put(f"{path}/network", json={"denyOut": ["nonsense"]})
    assert (bad.status_code, "network.denyOut" in bad.json()["message"]) == (400, True)


async def test_a_sandbox_without_a_way_out_gets_none_later(api: httpx.AsyncClient) -> None:
    made = await create(api, allow_internet_access=False)
    answer = await api.put(f"/sandboxes/{made['sandboxID']}/network", json={"allowOut": ["1.1.1.1"]})
    assert answer.status_code == 409
    assert (await api.get(f"/sandboxes/{made['sandboxID']}")).json()["allowInternetAccess"] is False


async def test_traffic_that_is_not_public_has_a_token(api: httpx.AsyncClient, clock: Clock) -> None:
    assert (await create(api))["trafficAccessToken"] is None
    made = await create(api, network={"allowPublicTraffic": False})
    assert len(made["trafficAccessToken"]) == 64
    connected = await api.post(f"/v2/sandboxes/{made['sandboxID']}/connect", json={})
    assert connected.json()["trafficAccessToken"] == made["trafficAccessToken"]


async def test_volumes_are_mounted_by_name(api: httpx.AsyncClient, engine: InMemoryEngine) -> None:
    volume = (await api.post("/volumes", json={"name": "data"})).json()
    mounts = [{"name": "data", "path": "/data"}]
    made = await create(api, volumeMounts=mounts)
    (pod_id,) = [pod_id for pod_id, pod in (await engine.observe()).items() if "volume" not in pod.labels]
    mounted = {mount.path: mount.volume for mount in engine.spec_of(pod_id).containers[0].mounts}
    assert mounted["/data"] == volume["volumeID"]
    assert (await api.get(f"/sandboxes/{made['sandboxID']}")).json()["volumeMounts"] == mounts
    missing = await api.post("/v2/sandboxes", json={"volumeMounts": [{"name": "other", "path": "/data"}]})
    assert (missing.status_code, "'other'" in missing.json()["message"]) == (404, True)


async def test_a_sandbox_has_a_log_of_its_life(api: httpx.AsyncClient) -> None:
    made = await create(api, mcp={"time": {}})
    path = f"/sandboxes/{made['sandboxID']}"
    await api.post(f"{path}/pause")
    async with asyncio.timeout(BOUND_S):
        while not (messages := [line["message"] for line in (await api.get(f"/v2{path}/logs")).json()["logs"]]):
            await asyncio.sleep(0.01)
    assert any("Created from template" in message for message in messages)
