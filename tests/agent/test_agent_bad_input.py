"""Whatever a caller sends, the agent answers in the contract's words and goes on answering."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.agent.envelopes import STREAM_TYPE, envelope, envelopes_in, stream
from tests.agent.running_agent import CONTROL_TOKEN, RunningAgent

STATUS_OF_CODE = {
    "invalid_argument": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "already_exists": 409,
    "resource_exhausted": 429,
    "internal": 500,
    "unknown": 500,
    "unimplemented": 501,
}

UNARY = [
    *(f"/process.Process/{name}" for name in ("List", "Update", "SendInput", "SendSignal", "CloseStdin")),
    *(f"/filesystem.Filesystem/{name}" for name in ("Stat", "MakeDir", "Move", "ListDir", "Remove")),
    *(f"/filesystem.Filesystem/{name}" for name in ("CreateWatcher", "GetWatcherEvents", "RemoveWatcher")),
]
STREAMS = ["/process.Process/Start", "/process.Process/Connect", "/process.Process/StreamInput"]

ODD_TEXT = some.sampled_from(["", "\0", "~", "~root", "/", "..", "a\nb", "é", "/dev/full", "x" * 300, "a/" * 3000])
FIELDS = some.sampled_from(
    ["path", "source", "destination", "depth", "recursive", "includeEntry", "watcherId", "process", "pid", "tag", "pty"]
    + ["size", "cols", "rows", "signal", "input", "stdin", "cmd", "args", "envs", "cwd", "start", "data", "keepalive"]
)
VALUES = some.recursive(
    some.none() | some.booleans() | some.integers(-(2**63), 2**63 - 1) | some.just(0.5) | ODD_TEXT,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=12,
)
MESSAGES = some.dictionaries(FIELDS, VALUES, max_size=6)

quick = settings(max_examples=25, deadline=None, database=None, derandomize=True)


@pytest.fixture(scope="module")
def client(agent: RunningAgent) -> Iterator[httpx.Client]:
    """One for all examples: making one takes longer than an example."""
    with agent.client() as opened:
        yield opened


def assert_documented(error: dict[str, Any]) -> None:
    assert error["code"] in STATUS_OF_CODE
    # The only failures that the contract itself calls internal.
    assert error["code"] != "internal" or error["message"].startswith("error writing to")


# Remove and Move would do what they are told: to `/`, too.
@pytest.mark.parametrize("method", [method for method in UNARY if not method.endswith(("/Remove", "/Move"))])
@quick
@given(message=MESSAGES)
def test_a_call_with_any_message_is_answered_in_the_contract_s_words(
    client: httpx.Client, method: str, message: dict[str, Any]
) -> None:
    answer = client.post(method, json=message)

    if answer.status_code != 200:
        assert_documented(answer.json())
        assert answer.status_code == STATUS_OF_CODE[answer.json()["code"]]


@pytest.mark.parametrize("method", STREAMS)
@quick
@given(messages=some.lists(MESSAGES, max_size=3))
def test_a_stream_of_any_messages_ends_in_the_contract_s_words(
    client: httpx.Client, method: str, messages: list[dict[str, Any]]
) -> None:
    body = b"".join(envelope(message) for message in messages)
    answer = client.post(method, content=body, headers={"Content-Type": STREAM_TYPE, "Connect-Timeout-Ms": "2000"})

    assert answer.status_code == 200
    *_, (flags, end) = envelopes_in(iter([answer.content]))
    assert flags == 2
    if "error" in end:
        assert_documented(end["error"])


@pytest.mark.parametrize("method", [*UNARY, *STREAMS])
@quick
@given(body=some.binary(max_size=40) | VALUES.map(lambda value: json.dumps([value]).encode()))
def test_a_body_that_is_no_message_is_refused(client: httpx.Client, method: str, body: bytes) -> None:
    content_type = "application/json" if method in UNARY else STREAM_TYPE
    # With a bracket in front it is at best an array, and as an envelope it is larger than any message may be.
    answer = client.post(method, content=b"[" + body, headers={"Content-Type": content_type})

    if method in UNARY:
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")
    else:
        [(flags, end)] = envelopes_in(iter([answer.content]))
        assert (answer.status_code, flags) == (200, 2)
        assert end["error"]["code"] in ("invalid_argument", "resource_exhausted")


@settings(quick, max_examples=100)
@given(
    query=some.dictionaries(
        some.sampled_from(["path", "username", "signature", "signature_expiration"]), ODD_TEXT, max_size=4
    ),
    headers=some.dictionaries(
        some.sampled_from(["Range", "If-Range", "If-Modified-Since", "If-None-Match", "Accept-Encoding"]),
        some.sampled_from(["", "*", "bytes=", f"bytes={'9' * 40}-", "gzip;q=2", "identity;q=0", "\u00ff", ","]),
        max_size=3,
    ),
)
def test_a_download_with_any_query_and_headers_is_answered(
    client: httpx.Client, query: dict[str, str], headers: dict[str, str]
) -> None:
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = client.get("/files", params=query, headers=encoded)

    assert answer.status_code in (200, 206, 304, 400, 401, 404, 406, 412, 416)
    if answer.status_code >= 400:
        assert answer.json()["code"] == answer.status_code


@quick
@given(body=some.dictionaries(some.sampled_from(["source_paths", "destination", "username"]), VALUES))
def test_any_composition_that_is_no_good_is_refused(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = client.post("/files/compose", json=body)

    assert (answer.status_code in (400, 401, 404), answer.json()["code"]) == (True, answer.status_code)


@quick
@given(body=some.dictionaries(some.sampled_from(["sandboxId", "accessToken", "defaultUser", "defaultWorkdir"]), VALUES))
def test_any_configuration_that_is_no_good_is_refused(client: httpx.Client, body: dict[str, Any]) -> None:
    body["envs"] = [body.copy()]  # so that it is no good whatever the rest is
    answer = client.post("/init", json=body, headers={"X-Control-Token": CONTROL_TOKEN})

    assert (answer.status_code, answer.json()["code"]) == (400, 400)


@pytest.mark.parametrize(
    "fields", [{"envs": {"A=B": "x"}}, {"envs": {"A": "x\0"}}, {"envs": {"": "x"}}, {"args": ["\0"]}, {"cmd": "\0"}]
)
def test_what_no_process_can_be_given_is_refused(client: httpx.Client, fields: dict[str, Any]) -> None:
    _, end = stream(client, "/process.Process/Start", {"process": {"cmd": "true", **fields}})[-1]

    assert end["error"]["code"] == "invalid_argument"


def test_after_all_that_commands_run(agent: RunningAgent) -> None:
    assert agent.sandbox().commands.run("echo well").stdout == "well\n"
