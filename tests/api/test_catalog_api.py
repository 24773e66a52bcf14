"""The catalog over HTTP: lists, search, single servers, imports and their sources."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.api.calls import assert_error

REMOTE = {"title": "Docs", "type": "remote", "remote": {"url": "https://docs.example/mcp", "transport_type": "sse"}}
TILES: dict[str, Any] = {
    "acmedocs": REMOTE,
    "acmegraphs": {"title": "Acme graphs", "image": "mcp/acmegraphs", "description": "Dashboards and klaxons."},
    "acmekube": {"title": "K8s", "image": "mcp/k8s", "volumes": ["/root/.kube:/kube"]},
    "time": {"title": "Another clock", "image": "mcp/time"},
    "broken": {"title": 5, "image": "mcp/broken"},
}
DOCUMENT = json.dumps({"registry": TILES})


async def import_tiles(api: httpx.AsyncClient, **params: str) -> dict[str, Any]:
    answer = await api.post("/api/v1/catalog/imports", params={"name": "docker", **params}, content=DOCUMENT)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def keys(api: httpx.AsyncClient, **params: str | int) -> list[str]:
    answer = await api.get("/api/v1/catalog", params=params)
    assert answer.status_code == 200, answer.text
    return [item["key"] for item in answer.json()["items"]]


async def test_an_import_answers_with_counts_and_a_line_for_every_entry_at_fault(api: httpx.AsyncClient) -> None:
    answer = await import_tiles(api)
    assert answer["counts"] == {"servers": 4, "available": 3, "notRun": 1, "refused": 1, "shadowed": 1}
    assert answer["refused"] == [
        {
            "file": "docker",
            "entry": "broken",
            "field": "title",
            "reason": "Input should be a valid string",
            "remedy": "Correct the entry in the document and import it again.",
        }
    ]
    assert [(line["entry"], line["field"]) for line in answer["notRun"]] == [("acmekube", "hostPaths")]
    assert answer["shadowed"] == {"time": "shipped"}
    assert answer["change"] == {"added": ["acmedocs", "acmegraphs", "acmekube", "time"], "removed": [], "changed": {}}
    assert answer["catalog"]["format"] == "docker-catalog"
    assert answer["catalog"]["digest"].startswith("sha256:")


async def test_an_import_may_be_yaml(api: httpx.AsyncClient) -> None:
    answer = await api.post("/api/v1/catalog/imports", content="registry: {acme: {title: Acme, image: example/acme}}")
    assert answer.status_code == 201
    assert answer.json()["catalog"]["name"] == "docker-catalog"
    assert (await api.get("/api/v1/catalog/servers/acme")).json()["source"] == "docker-catalog"


async def test_an_imported_server_runs_in_a_sandbox_and_one_that_is_refused_says_why(api: httpx.AsyncClient) -> None:
    await import_tiles(api)
    assert (await api.post("/v2/sandboxes", json={"mcp": {"acmedocs": {}}})).status_code == 201
    answer = await api.post("/v2/sandboxes", json={"mcp": {"acmekube": {}}})
    assert_error(answer, 400, "acmekube", "hostPaths", "/root/.kube:/kube is a path of the host", "catalog/servers")


async def test_a_running_sandbox_outlives_the_catalog_it_was_made_from(api: httpx.AsyncClient) -> None:
    await import_tiles(api)
    created = (await api.post("/v2/sandboxes", json={"mcp": {"acmedocs": {}}})).json()
    assert (await api.delete("/api/v1/catalog/sources/docker")).status_code == 204
    running = (await api.get(f"/sandboxes/{created['sandboxID']}")).json()
    assert running["mcp"]["servers"]["acmedocs"]["state"] == "ready"
    assert_error(
        await api.post("/v2/sandboxes", json={"mcp": {"acmedocs": {}}}), 400, "there is no MCP server 'acmedocs'"
    )


async def test_the_list_comes_in_pages_by_key(api: httpx.AsyncClient) -> None:
    whole = await keys(api, limit=1000)
    assert whole == sorted(whole)
    paged: list[str] = []
    params: dict[str, str | int] = {"limit": 3}
    while True:
        page = (await api.get("/api/v1/catalog", params=params)).json()
        paged += [item["key"] for item in page["items"]]
        if page["nextCursor"] is None:
            break
        params["cursor"] = page["nextCursor"]
    assert paged == whole


async def test_a_search_finds_servers_by_words_and_beginnings_the_best_first(api: httpx.AsyncClient) -> None:
    await import_tiles(api)
    assert await keys(api, q="dashb klax") == ["acmegraphs"]
    assert (await keys(api, q="time"))[0] == "time"
    assert await keys(api, q="xyzzy plugh") == []
    first = (await api.get("/api/v1/catalog", params={"q": "e", "limit": 1})).json()
    rest = (await api.get("/api/v1/catalog", params={"q": "e", "cursor": first["nextCursor"], "limit": 1000})).json()
    found = [item["key"] for item in (*first["items"], *rest["items"])]
    assert found == await keys(api, q="e", limit=1000)


@pytest.mark.parametrize("cursor", ["x", "!!!", "c2tpcDox", "é"])
async def test_a_cursor_of_something_else_is_refused(api: httpx.AsyncClient, cursor: str) -> None:
    assert_error(await api.get("/api/v1/catalog", params={"cursor": cursor}), 400, "cursor")


async def test_one_server_is_shown_whole(api: httpx.AsyncClient) -> None:
    await import_tiles(api)
    shown = (await api.get("/api/v1/catalog/servers/acmekube")).json()
    assert (shown["state"], shown["source"]) == ("refused", "docker")
    assert shown["manifest"]["hostPaths"] == ["/root/.kube:/kube"]
    assert_error(await api.get("/api/v1/catalog/servers/acmekub"), 404, "Did you mean 'acmekube'")


async def test_an_unknown_server_is_answered_with_the_nearest_ones(api: httpx.AsyncClient) -> None:
    await import_tiles(api)
    answer = await api.post("/v2/sandboxes", json={"mcp": {"acmegraph": {}}})
    assert_error(answer, 400, "there is no MCP server 'acmegraph'", "Did you mean 'acmegraphs'")


async def test_an_import_replaces_shipped_servers_only_when_told_to(api: httpx.AsyncClient) -> None:
    await import_tiles(api)
    assert (await api.get("/api/v1/catalog/servers/time")).json()["source"] == "shipped"
    await import_tiles(api, override="true")
    assert (await api.get("/api/v1/catalog/servers/time")).json()["source"] == "docker"


async def test_sources_are_listed_pinned_and_removed(api: httpx.AsyncClient) -> None:
    digest = (await import_tiles(api))["catalog"]["digest"]
    (source,) = (await api.get("/api/v1/catalog/sources")).json()
    assert (source["name"], source["origin"], source["digest"], source["pinned"]) == ("docker", None, digest, False)
    assert (await api.put("/api/v1/catalog/sources/docker/pin", json={"digest": digest})).json()["pinned"]
    changed = json.dumps({"registry": {}})
    answer = await api.post("/api/v1/catalog/imports", params={"name": "docker"}, content=changed)
    assert_error(answer, 409, digest, "pinned")
    assert not (await api.delete("/api/v1/catalog/sources/docker/pin")).json()["pinned"]
    assert_error(await api.post("/api/v1/catalog/sources/docker/refresh"), 400, "no origin")
    assert_error(await api.get("/api/v1/catalog/sources/docker/diff"), 400, "no origin")
    assert (await api.delete("/api/v1/catalog/sources/docker")).status_code == 204
    assert_error(await api.delete("/api/v1/catalog/sources/docker"), 404, "There are: none")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"url": "http://127.0.0.1:1/c"}', ["only https"]),
        ('{"url": "https://127.0.0.1/c"}', ["only public hosts"]),
        ('{"url": "/etc/passwd"}', ["is no https URL"]),
        ('{"url": 5}', ["url: expected text"]),
        ("{}", ["the document: is no catalog of a known format"]),
        ("", ["the document: is no catalog of a known format"]),
        ("[", ["neither YAML nor JSON"]),
    ],
)
async def test_a_body_that_is_no_catalog_is_refused(api: httpx.AsyncClient, body: str, words: list[str]) -> None:
    assert_error(await api.post("/api/v1/catalog/imports", content=body), 400, *words)


async def test_an_import_may_be_larger_than_other_bodies_and_still_has_a_bound(api: httpx.AsyncClient) -> None:
    padded = json.dumps({"registry": {}, "about": "x" * 2 * 1024 * 1024})
    assert (await api.post("/api/v1/catalog/imports", params={"name": "large"}, content=padded)).status_code == 201
    assert_error(await api.post("/api/v1/catalog/imports", content=b" " * (8 * 1024 * 1024 + 1)), 413, "8192 KiB")


async def test_the_catalog_is_for_those_with_a_key(api: httpx.AsyncClient) -> None:
    del api.headers["X-API-KEY"]
    assert_error(await api.get("/api/v1/catalog"), 401)
    assert_error(await api.post("/api/v1/catalog/imports", content=DOCUMENT), 401)
