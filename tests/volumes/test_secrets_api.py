"""Secrets over the wire: taken, counted, listed, and never given back."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.secrets.at_rest import check_stored_secrets, renew_stored_secrets
from app.vault import Vault, VaultError
from tests.volumes.conftest import Rooms, serving

VALUE = "sk-the-value-nobody-may-see"


async def create(api: httpx.AsyncClient, name: str = "openai", **body: Any) -> dict[str, Any]:
    answer = await api.post("/secrets", json={"name": name, "value": VALUE, **body})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def assert_refused(answer: httpx.Response, status: int, *words: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, status), answer.text
    assert VALUE not in answer.text
    for word in words:
        assert word in answer.json()["message"]


async def test_a_secret_has_versions_and_its_value_is_in_no_answer(api: httpx.AsyncClient) -> None:
    made = await create(api, name="OpenAI-Key", metadata={"owner": "me"})
    assert made == {
        "secretID": made["secretID"],
        "name": "openai-key",
        "currentVersion": 1,
        "metadata": {"owner": "me"},
        "createdAt": made["createdAt"],
        "updatedAt": made["createdAt"],
    }
    for key in (made["secretID"], "openai-key", "OPENAI-KEY"):
        assert (await api.get(f"/secrets/{key}")).json() == made
    updated = (await api.post("/secrets/openai-key", json={"value": f"{VALUE}-2"})).json()
    assert (updated["currentVersion"], updated["metadata"]) == (2, {"owner": "me"})
    assert updated["updatedAt"] > made["updatedAt"]
    replaced = await api.post(f"/secrets/{made['secretID']}", json={"value": VALUE, "metadata": {}})
    assert (replaced.json()["currentVersion"], replaced.json()["metadata"]) == (3, {})
    assert VALUE not in replaced.text + (await api.get("/secrets")).text
    assert (await api.delete("/secrets/openai-key")).status_code == 204
    assert_refused(await api.delete("/secrets/openai-key"), 404)
    assert_refused(await api.get("/secrets/openai-key"), 404, "openai-key")
    assert_refused(await api.post("/secrets/openai-key", json={"value": "x"}), 404)


async def test_a_name_is_taken_once_whatever_its_case(api: httpx.AsyncClient, rooms: Rooms) -> None:
    await create(api)
    assert_refused(await api.post("/secrets", json={"name": "OpenAI", "value": VALUE}), 409, "openai")
    async with serving(rooms, await rooms.accounts.create_team("other")) as other:
        await create(other)


async def test_another_team_s_secret_is_not_there(api: httpx.AsyncClient, rooms: Rooms) -> None:
    made = await create(api)
    async with serving(rooms, await rooms.accounts.create_team("other")) as other:
        assert (await other.get("/secrets")).json() == []
        assert_refused(await other.get(f"/secrets/{made['secretID']}"), 404)
        assert_refused(await other.post(f"/secrets/{made['secretID']}", json={"value": "x"}), 404)
        assert_refused(await other.delete("/secrets/openai"), 404)
    assert (await api.get("/secrets/openai")).json() == made


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""},
        {"name": "   "},
        {"name": "a{b"},
        {"name": "a}b"},
        {"name": "a/b"},
        {"name": "a\nb"},
        {"name": "a\0b"},
        {"name": "sec_mine"},
        {"name": "x" * 257},
        {"value": ""},
        {"value": "x" * 8193},
        {"value": None},
        {"metadata": {"k" * 129: "v"}},
        {"metadata": {"k": "v" * 1025}},
        {"metadata": {str(n): "v" for n in range(33)}},
        {"metadata": {str(n): "v" * 1000 for n in range(9)}},
        {"metadata": {"k": 1}},
    ],
)
async def test_bad_input_is_told_of(api: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert_refused(await api.post("/secrets", json={"name": "n", "value": VALUE, **body}), 400, *body)


async def test_pages_hold_all_secrets_once_though_some_go_meanwhile(api: httpx.AsyncClient) -> None:
    for number in range(5):
        await create(api, name=f"s{number}")
    first = await api.get("/secrets", params={"limit": 2})
    assert [secret["name"] for secret in first.json()] == ["s0", "s1"]
    await api.delete("/secrets/s1")
    await create(api, name="s00")
    second = await api.get("/secrets", params={"limit": 2, "nextToken": first.headers["x-next-token"]})
    assert [secret["name"] for secret in second.json()] == ["s2", "s3"]
    last = await api.get("/secrets", params={"limit": 2, "nextToken": second.headers["x-next-token"]})
    assert [secret["name"] for secret in last.json()] == ["s4"]
    assert "x-next-token" not in last.headers
    for token in ("%%%", "ä", "abc"):
        assert_refused(await api.get("/secrets", params={"nextToken": token}), 400, "nextToken")
    assert_refused(await api.get("/secrets", params={"limit": 0}), 400)


async def test_what_is_stored_is_encrypted_and_can_be_put_under_a_new_key(
    api: httpx.AsyncClient, rooms: Rooms, tmp_path: Path
) -> None:
    await create(api)
    volume = await rooms.volumes.create(rooms.team.id, "data")
    with sqlite3.connect(tmp_path / "test.db") as connection:
        dump = "\n".join(connection.iterdump())
    connection.close()
    assert VALUE not in dump
    assert volume.token not in dump
    await check_stored_secrets(rooms.database, rooms.vault)
    rooms.vault.add_key()
    assert await renew_stored_secrets(rooms.database, rooms.vault) == 2
    rooms.vault.forget_old_keys()
    await check_stored_secrets(rooms.database, rooms.vault)
    assert (await rooms.volumes.get(rooms.team.id, volume.id)).token == volume.token
    with pytest.raises(VaultError):
        await check_stored_secrets(rooms.database, Vault(tmp_path / "another-key"))
