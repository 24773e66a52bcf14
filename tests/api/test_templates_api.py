"""The template endpoints as the SDKs call them."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest

from app.accounts import Team
from tests.in_process import ControlPlane
from tests.templates.builds import archive, hash_of
from tests.waiting import BOUND_S


async def ask(api: httpx.AsyncClient, name: str = "web", **body: object) -> dict[str, Any]:
    answer = await api.post("/v3/templates", json={"name": name, **body})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def build(api: httpx.AsyncClient, name: str = "web", **body: object) -> dict[str, Any]:
    """Ask for a build, send it, wait for its end; gives what the status says then."""
    asked = await ask(api, name)
    path = f"/templates/{asked['templateID']}/builds/{asked['buildID']}"
    started = await api.post(f"/v2{path}", json={"fromImage": "e2bdev/base", **body})
    assert started.status_code == 202, started.text
    assert started.content == b""
    async with asyncio.timeout(BOUND_S):
        while True:
            status = (await api.get(f"{path}/status")).json()
            if status["status"] in ("ready", "error"):
                return dict(status)
            await asyncio.sleep(0.005)


async def test_asking_for_a_build_answers_all_that_the_sdks_need(api: httpx.AsyncClient) -> None:
    asked = await ask(api, "web:v1", tags=["prod"], cpuCount=2, memoryMB=1024, minFreeDiskMb=5)
    assert UUID(asked.pop("buildID"))
    assert asked.pop("templateID").isalnum()
    assert asked == {"public": False, "names": ["web"], "tags": ["v1", "prod"], "aliases": ["web"]}


async def test_older_sdks_send_an_alias(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v2/templates", json={"alias": "web"})
    assert (answer.status_code, answer.json()["tags"]) == (202, ["default"])


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "no spaces"},
        {"name": "web:"},
        {"name": "base"},
        {"name": "team_other/web"},
        {"name": "web", "tags": ["a:b"]},
        {"name": "web", "tags": ["0b8e1c1e-6a4f-4a70-9d27-0d7f3c2b4a55"]},
        {"name": "web", "cpuCount": 0},
        {"name": "web", "cpuCount": 100000},
        {"name": "web", "memoryMB": -1},
        {"name": 5},
    ],
)
async def test_a_template_that_cannot_be_named_so_is_refused(api: httpx.AsyncClient, body: dict[str, object]) -> None:
    answer = await api.post("/v3/templates", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, 400)


async def test_a_build_that_succeeds_has_no_reason_at_all(api: httpx.AsyncClient) -> None:
    status = await build(api, steps=[{"type": "RUN", "args": ["ls"], "force": False}])
    assert status["status"] == "ready"
    assert status["logs"] == []
    assert "reason" not in status
    assert {"timestamp", "message", "level"} <= status["logEntries"][0].keys()


async def test_a_build_that_fails_says_where(api: httpx.AsyncClient) -> None:
    status = await build(api, fromImage="acme/absent:1")
    assert status["status"] == "error"
    assert status["reason"]["step"] == "base"
    assert "acme/absent:1" in status["reason"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"fromImage": "a", "fromTemplate": "b"},
        {"fromImage": "127.0.0.1:5000/a"},
        {"fromImage": "a", "steps": [{"type": "FROM", "args": ["b"]}]},
        {"fromImage": "a", "steps": [{"type": "COPY", "args": ["a", "b"]}]},
        {"fromImage": "a", "steps": "none"},
        {"fromImage": "a", "fromImageRegistry": {"type": "registry", "username": "ann"}},
        {"fromImage": "a", "fromImageRegistry": {"type": "aws", "awsAccessKeyId": "x", "awsSecretAccessKey": "sesame"}},
        {"fromImage": "a", "fromImageRegistry": {"type": "other"}},
    ],
)
async def test_a_build_that_cannot_be_is_refused_and_may_be_sent_again(
    api: httpx.AsyncClient, body: dict[str, object]
) -> None:
    asked = await ask(api)
    path = f"/v2/templates/{asked['templateID']}/builds/{asked['buildID']}"
    answer = await api.post(path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, 400)
    assert "sesame" not in answer.text
    assert (await api.post(path, json={"fromImage": "e2bdev/base"})).status_code == 202
    assert (await api.post(path, json={"fromImage": "e2bdev/base"})).status_code == 400


async def test_files_go_to_a_signed_address_without_a_key(api: httpx.AsyncClient, control_plane: ControlPlane) -> None:
    content = archive(readme="hello")
    asked = await ask(api)
    link = await api.get(f"/templates/{asked['templateID']}/files/{hash_of(content)}")
    assert link.status_code == 201
    assert link.json()["present"] is False
    url = urlsplit(link.json()["url"])
    assert f"{url.scheme}://{url.netloc}" == "http://gate.example"

    without_key = {"X-API-KEY": ""}
    sent = await api.put(f"{url.path}?{url.query}", content=content, headers=without_key)
    assert sent.status_code == 200, sent.text
    other_digit = "1" if url.query.endswith("0") else "0"
    forged = await api.put(f"{url.path}?{url.query[:-1]}{other_digit}", content=content, headers=without_key)
    assert forged.status_code == 401
    incomplete = await api.put(url.path, content=content, headers=without_key)
    assert incomplete.status_code == 400
    again = await api.get(f"/templates/{asked['templateID']}/files/{hash_of(content)}")
    assert again.json()["present"] is True


async def test_an_upload_may_be_larger_than_other_bodies_but_not_of_any_size(api: httpx.AsyncClient) -> None:
    asked = await ask(api)
    link = (await api.get(f"/templates/{asked['templateID']}/files/{'a' * 64}")).json()
    url = urlsplit(link["url"])
    too_large = await api.put(f"{url.path}?{url.query}", content=bytes(1024 * 1024 + 1))
    assert (too_large.status_code, "SANDGATE_UPLOAD_LIMIT_MIB" in too_large.text) == (413, True)


async def test_a_name_is_looked_up_as_an_alias(api: httpx.AsyncClient) -> None:
    built = await build(api)
    found = await api.get("/templates/aliases/web")
    assert (found.status_code, found.json()) == (200, {"templateID": built["templateID"], "public": False})
    assert (await api.get("/templates/aliases/base")).json() == {"templateID": "base", "public": True}
    absent = await api.get("/templates/aliases/absent")
    assert (absent.status_code, absent.json()["code"]) == (404, 404)
    assert (await api.get("/templates/aliases/no%20name")).status_code == 400


async def test_a_namespace_may_stand_before_a_name_with_its_slash_encoded(
    api: httpx.AsyncClient, control_plane: ControlPlane
) -> None:
    built = await build(api)
    found = await api.get(f"/templates/aliases/{control_plane.team_id}%2Fweb")
    assert found.json()["templateID"] == built["templateID"]
    assert (await api.get(f"/templates/{control_plane.team_id}%2Fweb/tags")).status_code == 200


async def test_tags_are_assigned_listed_and_removed(api: httpx.AsyncClient) -> None:
    built = await build(api, "web:v1")
    assigned = await api.post("/templates/tags", json={"target": "web:v1", "tags": ["prod"]})
    assert (assigned.status_code, assigned.json()) == (201, {"tags": ["prod"], "buildID": built["buildID"]})
    listed = (await api.get("/templates/web/tags")).json()
    assert [(tag["tag"], tag["buildID"]) for tag in listed] == [("prod", built["buildID"]), ("v1", built["buildID"])]
    removal = {"name": "web", "tags": ["prod"]}
    assert (await api.request("DELETE", "/templates/tags", json=removal)).status_code == 204
    assert (await api.request("DELETE", "/templates/tags", json=removal)).status_code == 404
    assert (await api.post("/templates/tags", json={"target": "web:v9", "tags": ["x"]})).status_code == 404
    assert (await api.post("/templates/tags", json={"target": "web:v1", "tags": [":x"]})).status_code == 400


@pytest.mark.parametrize("path", ["/templates", "/v2/templates"])
async def test_a_list_has_every_field_that_the_sdks_require(api: httpx.AsyncClient, path: str) -> None:
    built = await build(api)
    first, *others = (await api.get(path, params={"teamID": "any"})).json()
    assert first.pop("createdAt").endswith("Z")
    assert first.pop("updatedAt").endswith("Z")
    assert first == {
        "templateID": built["templateID"],
        "buildID": built["buildID"],
        "cpuCount": 1,
        "memoryMB": 512,
        "diskSizeMB": 10240,
        "public": False,
        "aliases": ["web"],
        "names": ["web"],
        "createdBy": None,
        "lastSpawnedAt": None,
        "spawnCount": 0,
        "buildCount": 1,
        "envdVersion": "0.6.13",
        "buildStatus": "ready",
        "isDefault": False,
    }
    assert [template["templateID"] for template in others] == ["base", "mcp-gateway"]


async def test_a_template_shows_its_builds(api: httpx.AsyncClient) -> None:
    built = await build(api)
    await ask(api)
    template = (await api.get("/templates/web")).json()
    newest, first = template["builds"]
    assert (newest["status"], "finishedAt" in newest) == ("waiting", False)
    assert (first["buildID"], first["status"], "finishedAt" in first) == (built["buildID"], "ready", True)
    assert template["buildID"] == built["buildID"]
    assert template["createdBy"] is None


async def test_publishing_shows_the_name_that_others_use(api: httpx.AsyncClient, control_plane: ControlPlane) -> None:
    built = await build(api)
    team = await control_plane.accounts.create_team("blue")
    theirs = {"X-API-KEY": await control_plane.accounts.create_key(Team(team.id, "blue"), "test")}
    assert (await api.get(f"/templates/{built['templateID']}", headers=theirs)).status_code == 404
    published = await api.patch(f"/v2/templates/{built['templateID']}", json={"public": True})
    assert published.json() == {"names": [f"{control_plane.team_id}/web"]}
    assert (await api.get(f"/templates/{built['templateID']}", headers=theirs)).status_code == 200
    assert (await api.delete(f"/templates/{built['templateID']}", headers=theirs)).status_code == 404
    taken_back = await api.patch(f"/templates/{built['templateID']}", json={"public": False})
    assert taken_back.json() == {"names": ["web"]}


async def test_deleting_is_refused_while_a_sandbox_uses_the_template(api: httpx.AsyncClient) -> None:
    await build(api)
    sandbox = await api.post("/v2/sandboxes", json={"templateID": "web"})
    assert sandbox.status_code == 201, sandbox.text
    refused = await api.delete("/templates/web")
    assert (refused.status_code, "while sandboxes use it" in refused.json()["message"]) == (400, True)
    await api.delete(f"/sandboxes/{sandbox.json()['sandboxID']}")
    assert (await api.delete("/templates/web")).status_code == 204
    assert (await api.delete("/templates/web")).status_code == 404
    assert (await api.delete("/templates/base")).status_code == 400


async def test_spawns_are_counted(api: httpx.AsyncClient) -> None:
    await build(api)
    await api.post("/v2/sandboxes", json={"templateID": "web"})
    template = (await api.get("/templates/web")).json()
    assert template["spawnCount"] == 1
    assert template["lastSpawnedAt"].endswith("Z")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v3/templates"),
        ("GET", "/templates"),
        ("GET", "/templates/web"),
        ("DELETE", "/templates/web"),
        ("GET", f"/templates/web/files/{'a' * 64}"),
        ("GET", "/templates/web/tags"),
        ("GET", "/templates/aliases/web"),
        ("GET", "/templates/web/builds/x/status"),
    ],
)
async def test_everything_but_an_upload_needs_a_key(api: httpx.AsyncClient, method: str, path: str) -> None:
    assert (await api.request(method, path, headers={"X-API-KEY": ""})).status_code == 401


@pytest.mark.parametrize("path", ["status", "logs"])
async def test_a_build_that_is_not_there_is_not_found(api: httpx.AsyncClient, path: str) -> None:
    asked = await ask(api)
    for build_id in ("0b8e1c1e-6a4f-4a70-9d27-0d7f3c2b4a55", "nonsense", "%00"):
        answer = await api.get(f"/templates/{asked['templateID']}/builds/{build_id}/{path}")
        assert answer.status_code == 404
    ours = f"/templates/{asked['templateID']}/builds/{asked['buildID']}/{path}"
    assert (await api.get(ours)).status_code == 200
    assert (await api.get(ours, params={"logsOffset": -1, "cursor": -1})).status_code == 400
