"""Volumes over the wire: names, tokens, teams, and what is in them through the real agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.engines.interface import ContainerSpec, Limits, PodSpec, VolumeMount
from tests.volumes.conftest import IMAGE, Rooms, serving
from tests.waiting import BOUND_S


async def create(api: httpx.AsyncClient, name: str = "data") -> dict[str, Any]:
    answer = await api.post("/volumes", json={"name": name})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def content(volume: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a request to the volume's content."""
    return {"headers": {"Authorization": f"Bearer {volume['token']}"}}


def assert_refused(answer: httpx.Response, status: int, *words: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, status), answer.text
    for word in words:
        assert word in answer.json()["message"]


async def test_a_volume_is_made_listed_told_of_and_removed(api: httpx.AsyncClient, rooms: Rooms) -> None:
    made = await create(api)
    assert made == {"volumeID": made["volumeID"], "name": "data", "token": made["token"], "domain": "sbx.example:8443"}
    assert await rooms.engine.volumes() == {made["volumeID"]}
    assert (await api.get("/volumes")).json() == [{"volumeID": made["volumeID"], "name": "data"}]
    assert (await api.get(f"/volumes/{made['volumeID']}")).json() == made
    assert (await api.delete(f"/volumes/{made['volumeID']}")).status_code == 204
    assert await rooms.engine.volumes() == frozenset()
    assert_refused(await api.delete(f"/volumes/{made['volumeID']}"), 404)
    assert_refused(await api.get(f"/volumes/{made['volumeID']}"), 404, made["volumeID"])


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "x" * 129, "../etc"])
async def test_names_that_cannot_be_used_are_refused(api: httpx.AsyncClient, name: str) -> None:
    assert_refused(await api.post("/volumes", json={"name": name}), 400, "name")


async def test_a_name_is_taken_once_in_a_team(api: httpx.AsyncClient, rooms: Rooms) -> None:
    await create(api)
    assert_refused(await api.post("/volumes", json={"name": "data"}), 400, "already")
    async with serving(rooms, await rooms.accounts.create_team("other")) as other:
        await create(other)


async def test_another_team_s_volume_is_not_there(api: httpx.AsyncClient, rooms: Rooms) -> None:
    made = await create(api)
    async with serving(rooms, await rooms.accounts.create_team("other")) as other:
        assert (await other.get("/volumes")).json() == []
        assert_refused(await other.get(f"/volumes/{made['volumeID']}"), 404)
        assert_refused(await other.delete(f"/volumes/{made['volumeID']}"), 404)
    assert await rooms.engine.volumes() == {made["volumeID"]}


async def test_a_volume_in_use_cannot_be_removed(api: httpx.AsyncClient, rooms: Rooms) -> None:
    made = await create(api)
    mount = VolumeMount(volume=made["volumeID"], path="/data")
    workspace = ContainerSpec(
        role="workspace", image=IMAGE, limits=Limits(memory_mib=64, cpus=1, pids=9), mounts=(mount,)
    )
    await rooms.engine.start(PodSpec(pod_id="p", containers=(workspace,)))
    assert_refused(await api.delete(f"/volumes/{made['volumeID']}"), 409, "sandbox")
    await rooms.engine.stop("p")
    assert (await api.delete(f"/volumes/{made['volumeID']}")).status_code == 204


async def test_a_volume_is_removed_once_the_containers_of_a_killed_sandbox_are_gone(
    api: httpx.AsyncClient, rooms: Rooms
) -> None:
    made = await create(api)
    mount = VolumeMount(volume=made["volumeID"], path="/data")
    limits = Limits(memory_mib=64, cpus=1, pids=9)
    workspace = ContainerSpec(role="workspace", image=IMAGE, limits=limits, mounts=(mount,))
    await rooms.engine.start(PodSpec(pod_id="p", containers=(workspace,)))
    async with asyncio.TaskGroup() as group:
        removal = group.create_task(api.delete(f"/volumes/{made['volumeID']}"))
        await asyncio.sleep(0)
        await rooms.engine.stop("p")
    assert removal.result().status_code == 204


async def test_a_volume_that_the_engine_could_not_make_is_not_recorded(api: httpx.AsyncClient, rooms: Rooms) -> None:
    rooms.engine.is_away = True
    assert_refused(await api.post("/volumes", json={"name": "data"}), 503, "engine")
    rooms.engine.is_away = False
    assert (await api.get("/volumes")).json() == []


async def test_files_go_in_and_come_out(api: httpx.AsyncClient) -> None:
    made = await create(api)
    at, auth = f"/volumecontent/{made['volumeID']}", content(made)
    written = await api.put(f"{at}/file", params={"path": "/in/note", "force": True}, content=b"hello", **auth)
    assert written.status_code == 201, written.text
    assert (written.json()["path"], written.json()["size"], written.json()["type"]) == ("/in/note", 5, "file")
    assert "target" not in written.json()
    read = await api.get(f"{at}/file", params={"path": "/in/note"}, **auth)
    assert (read.status_code, read.content, read.headers["content-length"]) == (200, b"hello", "5")
    headers = {**auth["headers"], "Range": "bytes=1-2"}
    ranged = await api.get(f"{at}/file", params={"path": "/in/note"}, headers=headers)
    assert (ranged.status_code, ranged.content, ranged.headers["content-range"]) == (206, b"el", "bytes 1-2/5")
    listed = await api.get(f"{at}/dir", params={"path": "/", "depth": 2}, **auth)
    assert [entry["path"] for entry in listed.json()] == ["/in", "/in/note"]
    changed = await api.patch(f"{at}/path", params={"path": "/in/note"}, json={"mode": 0o600}, **auth)
    assert (changed.status_code, changed.json()["mode"]) == (200, 0o600)
    assert (await api.post(f"{at}/dir", params={"path": "/more"}, **auth)).status_code == 201
    assert_refused(await api.post(f"{at}/dir", params={"path": "/more"}, **auth), 409, "/more")
    for path in ("/in", "/more"):
        assert (await api.delete(f"{at}/path", params={"path": path}, **auth)).status_code == 204
    assert_refused(await api.get(f"{at}/path", params={"path": "/in/note"}, **auth), 404, "/in/note")


async def test_a_large_upload_is_passed_on_as_it_comes(api: httpx.AsyncClient) -> None:
    made = await create(api)
    piece, pieces = b"x" * 65536, 200

    async def body() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield piece

    at, auth = f"/volumecontent/{made['volumeID']}", content(made)
    written = await api.put(f"{at}/file", params={"path": "/big", "force": True}, content=body(), **auth)
    assert (written.status_code, written.json()["size"]) == (201, len(piece) * pieces)
    read = await api.get(f"{at}/file", params={"path": "/big"}, **auth)
    assert len(read.content) == len(piece) * pieces
    await api.delete(f"{at}/path", params={"path": "/big"}, **auth)


async def test_only_the_volume_s_own_token_opens_it(api: httpx.AsyncClient) -> None:
    made, other = await create(api), await create(api, "other")
    for token in ("", "wrong", other["token"], api.headers["X-API-KEY"]):
        answer = await api.get(
            f"/volumecontent/{made['volumeID']}/path",
            params={"path": "/"},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert_refused(answer, 401, made["volumeID"])
    assert_refused(await api.get(f"/volumecontent/{made['volumeID']}/path", params={"path": "/"}), 401)
    gone = await api.get("/volumecontent/vol_never/path", params={"path": "/"}, **content(made))
    assert_refused(gone, 401)


@pytest.mark.parametrize(
    ("method", "where", "query"),
    [
        ("GET", "path", {}),
        ("GET", "path", {"path": ""}),
        ("GET", "path", {"path": "a\0"}),
        ("GET", "dir", {"path": "/", "depth": 11}),
        ("GET", "dir", {"path": "/", "depth": -1}),
        ("PUT", "file", {"path": "/f", "mode": -1}),
        ("PUT", "file", {"path": "/f", "uid": 1 << 32}),
        ("POST", "dir", {"path": "/d", "force": "perhaps"}),
        ("DELETE", "path", {"path": "/"}),
    ],
)
async def test_bad_input_is_told_of(api: httpx.AsyncClient, method: str, where: str, query: dict[str, Any]) -> None:
    made = await create(api)
    answer = await api.request(method, f"/volumecontent/{made['volumeID']}/{where}", params=query, **content(made))
    assert_refused(answer, 400)


async def test_the_pod_of_a_volume_has_no_way_out_and_goes_when_nobody_uses_it(
    api: httpx.AsyncClient, rooms: Rooms
) -> None:
    made = await create(api)
    await api.get(f"/volumecontent/{made['volumeID']}/path", params={"path": "/"}, **content(made))
    (pod_id,) = await rooms.engine.observe()
    spec = rooms.engine.spec_of(pod_id)
    assert (spec.egress, spec.labels) == (False, {"volume": made["volumeID"]})
    (container,) = spec.containers
    assert (container.new_privileges, [mount.volume for mount in container.mounts]) == (False, [made["volumeID"]])
    sweeping = asyncio.create_task(rooms.pods.run())
    try:
        async with asyncio.timeout(BOUND_S):
            while await rooms.engine.observe():
                await asyncio.sleep(0.01)
        answer = await api.get(f"/volumecontent/{made['volumeID']}/path", params={"path": "/"}, **content(made))
        assert answer.status_code == 200
    finally:
        sweeping.cancel()
        await asyncio.wait([sweeping])
    assert await rooms.engine.observe() == {}


async def test_a_pod_in_use_stays(rooms: Rooms) -> None:
    volume = await rooms.volumes.create(rooms.team.id, "data")
    sweeping = asyncio.create_task(rooms.pods.run())
    try:
        async with rooms.content.ask(volume.id, "GET", "/path", {"path": "/"}) as answer:
            (pod_id,) = await rooms.engine.observe()
            await asyncio.sleep(0.2)  # four times as long as an idle one has
            assert set(await rooms.engine.observe()) == {pod_id}
            await answer.aread()
    finally:
        sweeping.cancel()
        await asyncio.wait([sweeping])


async def test_a_pod_that_was_lost_is_replaced(api: httpx.AsyncClient, rooms: Rooms) -> None:
    made = await create(api)
    at, auth = f"/volumecontent/{made['volumeID']}", content(made)
    await api.get(f"{at}/path", params={"path": "/"}, **auth)
    (lost,) = await rooms.engine.observe()
    rooms.engine.exit_container(lost, "volume", exit_code=137)
    written = await api.put(f"{at}/file", params={"path": "/after", "force": True}, content=b"whole", **auth)
    assert (written.status_code, written.json()["size"]) == (201, 5)
    assert set(await rooms.engine.observe()) != {lost}


async def test_what_an_earlier_process_left_is_stopped_and_sandboxes_are_left_alone(rooms: Rooms) -> None:
    limits = Limits(memory_mib=64, cpus=1, pids=9)
    for pod_id, labels in (("left", {"volume": "vol_x"}), ("sandbox", {"sandbox": "i1"})):
        container = ContainerSpec(role="only", image=IMAGE, limits=limits)
        await rooms.engine.start(PodSpec(pod_id=pod_id, containers=(container,), labels=labels))
    sweeping = asyncio.create_task(rooms.pods.run())
    try:
        async with asyncio.timeout(BOUND_S):
            while set(await rooms.engine.observe()) != {"sandbox"}:
                await asyncio.sleep(0.01)
    finally:
        sweeping.cancel()
        await asyncio.wait([sweeping])


async def test_requests_at_the_same_time_share_one_pod(api: httpx.AsyncClient, rooms: Rooms) -> None:
    made = await create(api)
    async with asyncio.TaskGroup() as tasks:
        asks = [
            tasks.create_task(api.get(f"/volumecontent/{made['volumeID']}/dir", params={"path": "/"}, **content(made)))
            for _ in range(20)
        ]
    assert {ask.result().status_code for ask in asks} == {200}
    assert len(await rooms.engine.observe()) == 1


async def test_an_engine_that_is_away_is_told_of(api: httpx.AsyncClient, rooms: Rooms) -> None:
    made = await create(api)
    rooms.engine.is_away = True
    answer = await api.get(f"/volumecontent/{made['volumeID']}/path", params={"path": "/"}, **content(made))
    assert_refused(answer, 503, "engine")
    rooms.engine.is_away = False
    answer = await api.get(f"/volumecontent/{made['volumeID']}/path", params={"path": "/"}, **content(made))
    assert answer.status_code == 200


async def test_mounts_are_resolved_by_name(rooms: Rooms) -> None:
    volume = await rooms.volumes.create(rooms.team.id, "data")
    (mounted,) = await rooms.volumes.resolve_mounts(rooms.team.id, [("data", "/data//x/")])
    assert (mounted.volume_id, mounted.name, mounted.path) == (volume.id, "data", "/data/x")
    assert await rooms.volumes.resolve_mounts(rooms.team.id, []) == ()
