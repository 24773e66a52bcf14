"""The wire of the sandbox resources: what E2B's SDKs send and need back, and what bad input gets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import httpx
import pytest

from app.engines.in_memory_engine import InMemoryEngine
from tests.api.calls import assert_error, create
from tests.in_process import Clock, ControlPlane
from tests.pods import PodTransport


@pytest.mark.parametrize("path", ["/v2/sandboxes", "/sandboxes"])
async def test_create_answers_what_the_sdks_need(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.post(path, json={"templateID": "base", "timeout": 60, "secure": True, "unknown": 1})
    assert answer.status_code == 201
    body = answer.json()
    assert {key: body[key] for key in ("templateID", "clientID", "envdVersion", "domain", "mcp")} == {
        "templateID": "base",
        "clientID": "sandgate",
        "envdVersion": "0.6.13",
        "domain": None,
        "mcp": None,
    }
    assert body["sandboxID"].isalnum()
    assert len(body["envdAccessToken"]) == 64


async def test_create_with_servers_answers_url_token_and_states(api: httpx.AsyncClient) -> None:
    body = await create(api, templateID=None, mcp={"time": {}, "fetch": {}})
    assert body["templateID"] == "mcp-gateway"
    assert body["mcp"]["url"] == f"http://gate.example/sandboxes/{body['sandboxID']}/mcp"
    assert len(body["mcp"]["token"]) == 64
    ready = {"state": "ready", "listed": True, "message": None, "stderr": None}
    assert body["mcp"]["servers"] == {"time": ready, "fetch": ready}


async def test_an_empty_map_is_a_gateway_without_servers(api: httpx.AsyncClient) -> None:
    assert (await create(api, templateID=None, mcp={}))["mcp"]["servers"] == {}


async def test_a_sandbox_can_be_looked_at(api: httpx.AsyncClient) -> None:
    created = await create(api, mcp={"time": {}}, metadata={"a b": "c&d"}, allow_internet_access=False, timeout=90)
    detail = (await api.get(f"/sandboxes/{created['sandboxID']}")).json()
    assert detail["state"] == "running"
    assert detail["metadata"] == {"a b": "c&d"}
    assert detail["allowInternetAccess"] is False
    assert detail["envdAccessToken"] == created["envdAccessToken"]
    assert (detail["cpuCount"], detail["memoryMB"], detail["diskSizeMB"]) == (1, 512, 10240)
    assert detail["mcp"]["servers"]["time"]["state"] == "ready"
    assert "token" not in detail["mcp"]
    started, end = (datetime.fromisoformat(detail[key]) for key in ("startedAt", "endAt"))
    assert end - started == timedelta(seconds=90)


async def test_a_client_id_behind_the_sandbox_id_is_ignored(api: httpx.AsyncClient) -> None:
    created = await create(api)
    assert (await api.get(f"/sandboxes/{created['sandboxID']}-abc123")).status_code == 200


async def test_sandboxes_are_listed_newest_first(api: httpx.AsyncClient) -> None:
    ids = [(await create(api))["sandboxID"] for _ in range(3)]
    listed = (await api.get("/v2/sandboxes")).json()
    assert [sandbox["sandboxID"] for sandbox in listed] == ids[::-1]
    assert "envdAccessToken" not in listed[0]
    assert (await api.get("/v2/sandboxes", params={"state": "paused"})).json() == []


@pytest.mark.parametrize("prefix", ["/v2/sandboxes", "/sandboxes"])
async def test_connect_answers_as_create_did_and_never_shortens(api: httpx.AsyncClient, prefix: str) -> None:
    created = await create(api, mcp={"time": {}}, timeout=500)
    before = (await api.get(f"/sandboxes/{created['sandboxID']}")).json()["endAt"]
    for body in ({}, {"timeout": 10}, None):
        answer = await api.post(f"{prefix}/{created['sandboxID']}/connect", json=body)
        assert answer.status_code == 200
        assert answer.json() == created
    assert (await api.get(f"/sandboxes/{created['sandboxID']}")).json()["endAt"] == before
    await api.post(f"{prefix}/{created['sandboxID']}/connect", json={"timeout": 900})
    assert (await api.get(f"/sandboxes/{created['sandboxID']}")).json()["endAt"] > before


async def test_a_killed_sandbox_is_not_found(api: httpx.AsyncClient) -> None:
    created = await create(api)
    assert (await api.delete(f"/sandboxes/{created['sandboxID']}")).status_code == 204
    assert_error(await api.delete(f"/sandboxes/{created['sandboxID']}"), 404, created["sandboxID"])
    assert_error(await api.get(f"/sandboxes/{created['sandboxID']}"), 404)
    assert_error(await api.post(f"/v2/sandboxes/{created['sandboxID']}/connect", json={}), 404)
    assert_error(await api.post(f"/sandboxes/{created['sandboxID']}/timeout", json={"timeout": 5}), 404)


async def test_the_timeout_can_be_moved_both_ways(api: httpx.AsyncClient, clock: Clock) -> None:
    created = await create(api, timeout=60)
    ends = []
    for timeout in (900, 30):
        assert (
            await api.post(f"/sandboxes/{created['sandboxID']}/timeout", json={"timeout": timeout})
        ).status_code == 204
        ends.append((await api.get(f"/sandboxes/{created['sandboxID']}")).json()["endAt"])
    assert ends[0] > ends[1]


async def test_a_key_is_taken_from_either_header(api: httpx.AsyncClient) -> None:
    key = api.headers.pop("X-API-KEY")
    assert_error(await api.get("/v2/sandboxes"), 401, "X-API-KEY")
    assert_error(await api.get("/v2/sandboxes", headers={"X-API-KEY": "e2b_" + "0" * 40}), 401, "unknown")
    assert (await api.get("/v2/sandboxes", headers={"Authorization": f"Bearer {key}"})).status_code == 200


async def test_another_teams_sandbox_is_not_found(api: httpx.AsyncClient, control_plane: ControlPlane) -> None:
    created = await create(api)
    other = await control_plane.accounts.create_key(await control_plane.accounts.create_team("other"), "other")
    headers = {"X-API-KEY": other}
    path = f"/sandboxes/{created['sandboxID']}"
    assert_error(await api.get(path, headers=headers), 404)
    assert_error(await api.delete(path, headers=headers), 404)
    assert_error(await api.post(f"{path}/connect", json={}, headers=headers), 404)
    assert_error(await api.post(f"{path}/timeout", json={"timeout": 1}, headers=headers), 404)
    assert (await api.get("/v2/sandboxes", headers=headers)).json() == []


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"templateID": "nonsense"}, 404, ["'nonsense'"]),
        ({"mcp": {"tiem": {}}}, 400, ["Failed to start MCP gateway", "'tiem'", "'time'"]),
        ({"mcp": {"time": {"localTimezone": ["x"]}}}, 400, ["time", "localTimezone"]),
        ({"mcp": {"time": "x"}}, 400, ["mcp.time"]),
        ({"mcp": []}, 400, ["mcp"]),
        ({"mcp": {"time": {}}, "mcpOptions": {"naming": "never"}}, 400, ["mcpOptions.naming"]),
        ({"timeout": -1}, 400, ["timeout"]),
        ({"timeout": "soon"}, 400, ["timeout"]),
        ({"envVars": {"A": 1}}, 400, ["envVars.A"]),
        ({"network": {"denyOut": ["nonsense"]}}, 400, ["network.denyOut", "nonsense"]),
        ({"network": {"allowOut": ["example.com"]}}, 400, ["network.denyOut"]),
        ({"iam": {"tokens": {"t": {}}}}, 400, ["iam"]),
    ],
)
async def test_bad_input_is_named(
    api: httpx.AsyncClient, engine: InMemoryEngine, body: dict[str, object], status: int, words: list[str]
) -> None:
    assert_error(await api.post("/v2/sandboxes", json={"templateID": "mcp-gateway", **body}), status, *words)
    assert await engine.observe() == {}


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"\xff", b""])
async def test_a_body_that_is_no_json_object_is_refused(api: httpx.AsyncClient, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert_error(await api.post("/v2/sandboxes", content=content, headers=headers), 400)


@pytest.mark.parametrize(
    "value",
    ["99999999999999999999", '"\\ud800"', '{"\\udfff": 1}', "[" * 300 + "]" * 300],
    ids=["number", "text", "key", "nesting"],
)
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "once"}], ids=["without a key", "with a key"])
async def test_json_that_cannot_be_written_again_is_refused(
    api: httpx.AsyncClient, value: str, headers: dict[str, str]
) -> None:
    headers = {"Content-Type": "application/json", **headers}
    content = f'{{"mcp": {{"time": {{"x": {value}}}}}}}'
    refused = await api.post("/v2/sandboxes", content=content, headers=headers)
    assert_error(refused, 400, "the body: mcp has a number of more than 64 bits")
    path = f"/sandboxes/{(await create(api, mcp={}))['sandboxID']}"
    assert_error(await api.patch(f"{path}/mcp", content=content, headers=headers), 400, "mcp")
    content = f'{{"denyOut": [{value}]}}'
    assert_error(await api.put(f"{path}/network", content=content, headers=headers), 400)
    content = f'{{"network": {content}}}'
    assert_error(await api.post("/v2/sandboxes", content=content, headers=headers), 400, "network")


@pytest.mark.parametrize(
    ("path", "field", "content"),
    [
        ("/v2/sandboxes", "metadata", r'{"metadata": {"a": "\ud800"}}'),
        ("/v2/sandboxes", "metadata", r'{"metadata": {"\ud800": "a"}}'),
        ("/v2/sandboxes", "envVars", r'{"envVars": {"a": "\ud800"}}'),
        ("/v2/sandboxes", "templateID", r'{"templateID": "\ud800"}'),
        ("/v2/sandboxes", "volumeMounts", r'{"volumeMounts": [{"name": "\ud800", "path": "/a"}]}'),
        ("/secrets", "value", r'{"name": "a", "value": "\ud800"}'),
        ("/secrets", "metadata", r'{"name": "a", "value": "b", "metadata": {"\ud800": "a"}}'),
        ("/v2/templates/a/builds/b", "steps", r'{"fromImage": "a", "steps": [{"type": "RUN", "args": ["\ud800"]}]}'),
        ("/v2/templates/a/builds/b", "startCmd", r'{"fromImage": "a", "startCmd": "\ud800"}'),
    ],
)
async def test_text_that_is_none_is_refused(api: httpx.AsyncClient, path: str, field: str, content: str) -> None:
    answer = await api.post(path, content=content, headers={"Content-Type": "application/json"})
    assert_error(answer, 400, f"the body: {field} has")


@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_body_over_one_mebibyte_is_refused(api: httpx.AsyncClient, is_announced: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield b" " * 65536

    content = b" " * (1024 * 1024 + 1) if is_announced else pieces()
    assert_error(await api.post("/v2/sandboxes", content=content), 413, "1024 KiB")


async def test_a_server_that_does_not_come_up_is_no_reason_to_retry(api: httpx.AsyncClient, pods: PodTransport) -> None:
    pods.failing["fetch"] = ["Traceback", "ImportError"]
    answer = await api.post("/v2/sandboxes", json={"mcp": {"time": {}, "fetch": {}}})
    assert_error(answer, 424, "Failed to start MCP gateway", "'fetch'", "ImportError")


async def test_an_engine_that_is_away_is_a_reason_to_retry(api: httpx.AsyncClient, engine: InMemoryEngine) -> None:
    engine.is_away = True
    answer = await api.post("/v2/sandboxes", json={"templateID": "base"})
    assert_error(answer, 503, "engine")
    assert answer.headers["Retry-After"] == "5"


async def test_unknown_paths_and_methods_have_error_bodies_too(api: httpx.AsyncClient) -> None:
    assert_error(await api.get("/v2/nothing"), 404)
    assert_error(await api.put("/v2/sandboxes"), 405)


async def test_health_needs_no_key(api: httpx.AsyncClient) -> None:
    del api.headers["X-API-KEY"]
    assert (await api.get("/health")).status_code == 204


async def test_the_catalog_lists_servers_with_their_properties(api: httpx.AsyncClient) -> None:
    items = {item["key"]: item for item in (await api.get("/api/v1/catalog", params={"limit": 1000})).json()["items"]}
    assert {"time", "fetch", "git", "sqlite", "everything", "filesystem", "memory", "sequentialthinking"} <= set(items)
    assert items["time"]["properties"]["localTimezone"]["default"] == "UTC"


async def test_openapi_describes_the_fields_that_are_ours(api: httpx.AsyncClient) -> None:
    schemas = (await api.get("/openapi.json")).json()["components"]["schemas"]
    assert {"mcp", "mcpOptions"} <= set(schemas["NewSandbox"]["properties"])
    assert {"url", "token", "servers"} == set(schemas["McpAccess"]["properties"])
    assert (await api.get("/docs")).status_code == 200
