"""POST /files/compose: parts become one file."""

import os
from typing import Any

import httpx
import pytest

from tests.agent.running_agent import USER_UID, RunningAgent


def compose(agent: RunningAgent, **body: Any) -> httpx.Response:
    with agent.client() as client:
        return client.post("/files/compose", json=body)


def test_the_parts_are_joined_in_order_and_are_gone(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    pieces = [os.urandom(3 << 20), b"", b"end"]
    for number, piece in enumerate(pieces):
        sandbox.files.write(f"part-{number}", piece)

    answer = compose(agent, source_paths=["part-0", "part-1", "~/part-2"], destination="new/whole")

    path = agent.home / "new" / "whole"
    assert (answer.status_code, answer.json()) == (200, {"path": str(path), "name": "whole", "type": "file"})
    assert path.read_bytes() == b"".join(pieces)
    assert (path.stat().st_uid, oct(path.stat().st_mode & 0o777)) == (USER_UID, "0o644")
    assert [name for name in os.listdir(agent.home) if name.startswith("part-")] == []
    assert os.listdir(agent.home / "new") == ["whole"]


def test_a_destination_that_is_there_is_replaced(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.write("replaced", "before", user="user")
    sandbox.files.write("replacing", "after")

    assert compose(agent, source_paths=["replacing"], destination="replaced", username="user").status_code == 200

    assert sandbox.files.read("replaced") == "after"


def test_a_full_disk_leaves_the_destination_and_the_parts_as_they_were(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    destination = f"{agent.directory}/small/kept"
    sandbox.files.write(destination, "before")
    sandbox.files.write("too-large", bytes(3 << 20))

    answer = compose(agent, source_paths=["too-large"], destination=destination)

    assert (answer.status_code, answer.json()["code"]) == (507, 507)
    assert sandbox.files.read(destination) == "before"
    assert [entry.name for entry in sandbox.files.list(f"{agent.directory}/small")] == ["kept"]
    assert sandbox.files.exists("too-large") is True


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"destination": "x"}, 400, "source_paths must not be empty"),
        ({"source_paths": ["a-part"]}, 400, "destination is required"),
        ({"source_paths": "a-part", "destination": "x"}, 400, "must be a list of strings"),
        ({"source_paths": ["a-part"], "destination": "a-part"}, 400, "is the destination"),
        ({"source_paths": ["no-part"], "destination": "x"}, 404, "no-part' does not exist"),
        ({"source_paths": ["/etc"], "destination": "x"}, 400, "is not a regular file"),
        ({"source_paths": ["a-part"], "destination": "/etc"}, 400, "is a directory"),
        ({"source_paths": ["a-part"], "destination": "x", "username": "nobody-knows"}, 401, "invalid username"),
    ],
)
def test_what_cannot_be_joined_is_refused_with_its_reason(
    agent: RunningAgent, body: dict[str, Any], status: int, message: str
) -> None:
    agent.sandbox().files.write("a-part", "x")

    answer = compose(agent, **body)

    assert (answer.status_code, answer.json()["code"]) == (status, status)
    assert message in answer.json()["message"]


def test_joining_needs_the_access_token(agent: RunningAgent) -> None:
    with agent.client(headers={}) as client:
        assert client.post("/files/compose", json={}).status_code == 401
