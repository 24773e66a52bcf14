"""The agent of a volume: its files in the words of E2B's volume API, and nothing outside of it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.agent.running_agent import CONTROL_TOKEN, USER_UID, RunningAgent, running_agent
from tests.waiting import BOUND_S


@pytest.fixture
def volume() -> Iterator[RunningAgent]:
    """An agent whose volume is `home` of its directory."""
    with running_agent(volume="home") as agent:
        agent.headers = {"X-Control-Token": CONTROL_TOKEN}
        yield agent


@pytest.fixture
def content(volume: RunningAgent) -> Iterator[httpx.Client]:
    with volume.client() as client:
        yield client


def ask(content: httpx.Client, method: str, where: str, status: int, body: bytes | None = None, **query: Any) -> Any:
    answer = content.request(method, where, params=query, content=body)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


def test_a_file_is_open_to_all_users_and_belongs_to_the_sandbox_s_user(
    content: httpx.Client, volume: RunningAgent
) -> None:
    written = ask(content, "PUT", "/file", 201, b"hello", path="note.txt")
    assert {key: written[key] for key in ("name", "type", "path", "size", "mode", "uid", "gid")} == {
        "name": "note.txt",
        "type": "file",
        "path": "/note.txt",
        "size": 5,
        "mode": 0o666,
        "uid": USER_UID,
        "gid": USER_UID,
    }
    assert ask(content, "GET", "/path", 200, path="/note.txt") == written
    assert (volume.home / "note.txt").read_bytes() == b"hello"


def test_owner_and_mode_can_be_chosen_and_changed(content: httpx.Client, volume: RunningAgent) -> None:
    written = ask(content, "PUT", "/file", 201, b"", path="/f", uid=5, gid=6, mode=0o640)
    assert (written["uid"], written["gid"], written["mode"]) == (5, 6, 0o640)
    changed = ask(content, "PATCH", "/path", 200, path="/f", gid=7, mode=0o600)
    assert (changed["uid"], changed["gid"], changed["mode"]) == (5, 7, 0o600)
    status = (volume.home / "f").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (5, 7, 0o600)
    made = ask(content, "POST", "/dir", 201, path="/d", uid=5, mode=0o700)
    assert (made["type"], made["uid"], made["mode"]) == ("directory", 5, 0o700)


def test_what_is_there_is_replaced_only_by_force(content: httpx.Client) -> None:
    ask(content, "PUT", "/file", 201, b"first and long", path="/f")
    ask(content, "PUT", "/file", 409, b"second", path="/f")
    assert content.get("/file", params={"path": "/f"}).content == b"first and long"
    ask(content, "PUT", "/file", 201, b"third", path="/f", force="true")
    assert content.get("/file", params={"path": "/f"}).content == b"third"
    ask(content, "POST", "/dir", 201, path="/d")
    ask(content, "POST", "/dir", 409, path="/d")
    ask(content, "POST", "/dir", 201, path="/d", force="true")
    ask(content, "POST", "/dir", 409, path="/f", force="true")


def test_parents_are_made_only_by_force(content: httpx.Client) -> None:
    ask(content, "PUT", "/file", 404, b"", path="/a/b/c")
    ask(content, "POST", "/dir", 404, path="/a/b")
    ask(content, "PUT", "/file", 201, b"", path="/a/b/c", force="true")
    ask(content, "POST", "/dir", 201, path="/x/y", force="true")
    listed = ask(content, "GET", "/dir", 200, path="/", depth=3)
    assert [(entry["path"], oct(entry["mode"]), entry["uid"]) for entry in listed] == [
        ("/a", "0o777", USER_UID),
        ("/a/b", "0o777", USER_UID),
        ("/a/b/c", "0o666", USER_UID),
        ("/x", "0o777", USER_UID),
        ("/x/y", "0o777", USER_UID),
    ]


def test_a_listing_goes_as_deep_as_it_is_asked_to(content: httpx.Client) -> None:
    ask(content, "PUT", "/file", 201, b"", path="/a/b/c", force="true")
    assert [entry["path"] for entry in ask(content, "GET", "/dir", 200, path="/")] == ["/a"]
    assert [entry["path"] for entry in ask(content, "GET", "/dir", 200, path="/a", depth=0)] == ["/a/b"]
    ask(content, "GET", "/dir", 400, path="/", depth=11)
    ask(content, "GET", "/dir", 400, path="/a/b/c")
    ask(content, "GET", "/dir", 404, path="/nothing")


def test_removing_takes_what_is_below_along_but_never_the_root(content: httpx.Client, volume: RunningAgent) -> None:
    ask(content, "PUT", "/file", 201, b"", path="/a/b", force="true")
    ask(content, "DELETE", "/path", 204, path="/a")
    ask(content, "DELETE", "/path", 404, path="/a")
    ask(content, "DELETE", "/path", 400, path="/../.")
    assert volume.home.is_dir()


def test_no_link_and_no_path_leads_out_of_the_volume(content: httpx.Client, volume: RunningAgent) -> None:
    secret = volume.directory / "secret"
    secret.write_text("secret")
    (volume.home / "link").symlink_to(secret)
    (volume.home / "up").symlink_to("../secret")
    (volume.home / "outside").symlink_to(volume.directory)
    for path in ("/link", "/up", "/outside/secret", "/../secret", str(secret)):
        ask(content, "GET", "/file", 404, path=path)
    ask(content, "PATCH", "/path", 404, path="/link", mode=0o777)
    ask(content, "PUT", "/file", 404, b"x", path="/outside/new")
    assert secret.read_text() == "secret"
    link = ask(content, "GET", "/path", 200, path="/link")
    assert (link["type"], link["target"]) == ("symlink", str(secret))


def test_a_link_inside_the_volume_is_followed_from_its_root(content: httpx.Client, volume: RunningAgent) -> None:
    ask(content, "PUT", "/file", 201, b"here", path="/d/f", force="true")
    (volume.home / "link").symlink_to("/d/f")
    assert content.get("/file", params={"path": "/link"}).content == b"here"


def test_what_is_no_file_is_told_apart_and_never_waited_for(content: httpx.Client, volume: RunningAgent) -> None:
    os.mkfifo(volume.home / "pipe")
    assert ask(content, "GET", "/path", 200, path="/pipe")["type"] == "unknown"
    ask(content, "GET", "/file", 400, path="/pipe")
    ask(content, "PUT", "/file", 400, b"x", path="/pipe", force="true")
    ask(content, "GET", "/file", 400, path="/")


def test_a_part_of_a_file_can_be_read(content: httpx.Client) -> None:
    ask(content, "PUT", "/file", 201, b"0123456789", path="/f")
    answer = content.get("/file", params={"path": "/f"}, headers={"Range": "bytes=2-4"})
    assert (answer.status_code, answer.content) == (206, b"234")
    assert content.get("/file", params={"path": "/f"}, headers={"Range": "bytes=20-"}).status_code == 416


def test_an_upload_that_breaks_off_leaves_no_new_file(content: httpx.Client, volume: RunningAgent) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"x" * 3_000_000
        raise ConnectionError

    with pytest.raises(ConnectionError):
        content.put("/file", params={"path": "/half"}, content=pieces())
    # It is taken for somebody else's until what the broken upload left is gone.
    give_up_at = time.monotonic() + BOUND_S
    while content.put("/file", params={"path": "/half"}, content=b"").status_code != 201:
        assert time.monotonic() < give_up_at
    assert (volume.home / "half").stat().st_size == 0


@pytest.mark.parametrize(
    ("method", "where", "query"),
    [
        ("GET", "/path", {}),
        ("GET", "/path", {"path": ""}),
        ("GET", "/path", {"path": "a\0b"}),
        ("GET", "/path", {"path": "/" + "x" * 300}),
        ("PUT", "/file", {"path": "/f", "mode": "-1"}),
        ("PUT", "/file", {"path": "/f", "mode": "10000"}),
        ("PUT", "/file", {"path": "/f", "uid": "4294967295"}),
        ("PATCH", "/path", {"path": "/", "gid": "root"}),
        ("GET", "/dir", {"path": "/", "depth": "deep"}),
    ],
)
def test_bad_input_is_told_of(content: httpx.Client, method: str, where: str, query: dict[str, Any]) -> None:
    assert ask(content, method, where, 400, **query)["code"] == 400


def test_only_the_control_token_lets_anybody_in(content: httpx.Client, volume: RunningAgent) -> None:
    for method, where in (("GET", "/path"), ("PUT", "/file"), ("DELETE", "/path")):
        for headers in ({"X-Control-Token": "wrong"}, {"X-Control-Token": ""}):
            answer = content.request(method, where, params={"path": "/"}, headers=headers)
            assert answer.status_code == 401
    with volume.client(headers={}) as stranger:
        assert stranger.get("/dir", params={"path": "/"}).status_code == 401
        assert stranger.get("/metrics").status_code == 401
        assert stranger.get("/health").status_code == 204


def test_the_volume_is_what_other_processes_see(volume: RunningAgent, content: httpx.Client) -> None:
    ask(content, "PUT", "/file", 201, b"#!/bin/sh\n", path="/run", mode=0o755)
    assert subprocess.run([volume.home / "run"], check=False).returncode == 0
    (volume.home / "other").write_text("from a process")
    assert content.get("/file", params={"path": "other"}).text == "from a process"
    assert Path(volume.home / "other").exists()
