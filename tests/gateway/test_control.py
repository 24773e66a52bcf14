"""The control door: configuration, state, and requests from the workspace."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.gateway.running_gateway import TOKEN, RunningGateway, bad, echo, running_gateway, scripted
from tests.gateway.wire import LegacyWire, base_headers, modern, nested
from tests.waiting import BOUND_S, until

TOOL = [{"name": "t", "inputSchema": {"type": "object"}}]


async def pid_of(gateway: RunningGateway, tool: str) -> str:
    async with httpx.AsyncClient(timeout=20) as http:
        answer = await modern(http, gateway.url, "tools/call", {"name": tool})
        text: str = answer.json()["result"]["content"][0]["text"]
        return text.split()[-1]


async def test_servers_that_are_unchanged_keep_running(gateway: RunningGateway) -> None:
    same, other = scripted(tools=TOOL), scripted(tools=[{"name": "u", "inputSchema": {"type": "object"}}])
    gateway.configure({"same": same, "other": other})
    before = [await pid_of(gateway, "t"), await pid_of(gateway, "u")]
    changed = {**other, "env": {**other["env"], "MORE": "1"}}
    status = gateway.configure({"new": echo(), "other": changed, "same": same})
    assert list(status) == ["new", "other", "same"]
    assert [server["state"] for server in status.values()] == ["ready"] * 3
    after = [await pid_of(gateway, "t"), await pid_of(gateway, "u")]
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert not psutil.pid_exists(int(before[1]))


async def test_a_session_lives_through_a_new_configuration(gateway: RunningGateway) -> None:
    gateway.configure({"a": scripted(tools=TOOL)})
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        async with http.stream("GET", gateway.url, headers=session.headers) as stream:
            gateway.configure({"a": scripted(tools=TOOL), "b": scripted(tools=TOOL)})
            async for line in stream.aiter_lines():
                if line.startswith("data: ") and line[6:]:
                    assert "notifications/tools/list_changed" in line
                    break
        assert "result" in await session.call("b_t")


async def test_a_token_that_is_taken_away_ends_its_sessions(gateway: RunningGateway) -> None:
    gateway.tokens = ["old", "new"]
    gateway.configure({})
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url, token="old").open()
        assert (await session.post("ping")).status_code == 200
        gateway.tokens = ["new"]
        gateway.configure({})
        assert (await session.post("ping")).status_code == 401
        session.headers["Authorization"] = "Bearer new"
        assert (await session.post("ping")).status_code == 404


async def test_a_failed_server_is_tried_again_when_the_configuration_changes(gateway: RunningGateway) -> None:
    first = gateway.configure({"bad": bad("exits")})["bad"]
    gateway.put_config({"bad": bad("exits")})
    assert gateway.status()["bad"] == first
    changed = gateway.put_config({"bad": bad("exits"), "echo": echo()})
    assert changed["bad"]["state"] == "starting"


def server(**fields: Any) -> dict[str, Any]:
    return {"name": "a", "transport": {"type": "stdio", "command": ["x"]}, **fields}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ([], "must be a JSON object"),
        ({"tokens": "x"}, "tokens must be a list"),
        ({"naming": "never"}, "naming must be"),
        ({"servers": [{"transport": {}}]}, "servers[0].name must be"),
        ({"servers": [{"name": "../a", "transport": {}}]}, "servers[0].name must be"),
        ({"servers": [{"name": "a", "transport": {"type": "carrier pigeon"}}]}, "server 'a': transport.type must be"),
        ({"servers": [{"name": "a", "transport": {"type": "sse"}}]}, "server 'a': url must be"),
        ({"discovery": "yes"}, "discovery must be true or false"),
        ({"servers": [server(start="later")]}, "server 'a': start must be"),
        ({"servers": [server(remembered={"tools": [1]})]}, "server 'a': remembered.tools must be a list of objects"),
        ({"servers": [server(remembered={"era": "old"})]}, "server 'a': remembered.era must be"),
        ({"servers": [server(tools={"hide": ["x"]})]}, "server 'a': tools knows allow, deny, rename and describe"),
        ({"servers": [server(tools={"deny": "x"})]}, "server 'a': tools.deny must be a list"),
        ({"servers": [server(tools={"rename": {"x": "z", "y": "z"}})]}, "two tools cannot both be called 'z'"),
        ({"servers": [{"name": "a", "transport": {"type": "stdio", "command": []}}]}, "server 'a': command must not"),
        (
            {
                "servers": [
                    {"name": "a", "transport": {"type": "http", "url": "ftp://x", "headers": {"K": "s3cret-s3cret"}}}
                ]
            },
            "server 'a': url must start",
        ),
        ({"servers": [{"name": "a", "transport": {"type": "workspace", "command": ["x"]}}]}, "stdioDoor is missing"),
        ({"servers": [{"name": "a", "startTimeoutS": 0, "transport": {}}]}, "server 'a': startTimeoutS must be"),
    ],
)
async def test_a_configuration_that_is_wrong_is_refused_and_changes_nothing(
    gateway: RunningGateway, body: Any, problem: str
) -> None:
    gateway.configure({"echo": echo()})
    answer = gateway.control.put("/config", json=body)
    assert answer.status_code == 400
    assert problem in answer.json()["error"]
    assert "s3cret" not in answer.text
    assert list(gateway.status()) == ["echo"]


async def test_the_control_door_wants_its_own_token(gateway: RunningGateway) -> None:
    for method, path in (
        ("PUT", "/config"),
        ("GET", "/status"),
        ("GET", "/lists"),
        ("GET", "/requests"),
        ("POST", "/requests/r1"),
    ):
        for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {TOKEN}"}, {"Authorization": ""}):
            assert gateway.control.request(method, path, headers=headers, json={}).status_code == 401


async def test_a_status_that_waits_answers_when_the_time_is_over(gateway: RunningGateway) -> None:
    gateway.put_config({"silent": bad("silent")})
    assert gateway.status(0.1)["silent"]["state"] == "starting"


def test_a_request_of_the_workspace_is_settled_by_the_control_plane(gateway: RunningGateway) -> None:
    gateway.configure({})
    assert gateway.control.get("/requests", params={"wait": 0.05}).json() == {"requests": []}
    for settled, expected in (
        ({"ok": True}, (200, {"ok": True})),
        ({"ok": False, "message": "unknown server"}, (422, {"ok": False, "message": "unknown server"})),
    ):
        body = {"mcp": {"time": {}}, "token": "next"}
        answers: list[httpx.Response] = []

        def ask(body: Any = body, answers: Any = answers) -> None:
            url = f"{gateway.control.base_url}/requests"
            answers.append(httpx.post(url, json=body, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20))

        asking = threading.Thread(target=ask)
        asking.start()
        (request,) = gateway.control.get("/requests", params={"wait": 10}).json()["requests"]
        assert {key: request[key] for key in ("mcp", "token")} == body
        assert gateway.control.post(f"/requests/{request['id']}", json=settled).status_code == 200
        asking.join(10)
        assert (answers[0].status_code, answers[0].json()) == expected
        assert gateway.control.post(f"/requests/{request['id']}", json=settled).status_code == 404


def test_only_a_current_token_may_ask_for_a_configuration(gateway: RunningGateway) -> None:
    gateway.configure({})
    url = f"{gateway.control.base_url}/requests"
    with httpx.Client(timeout=BOUND_S) as client:
        assert client.post(url, json={"mcp": {}, "token": "x"}, headers=base_headers("wrong")).status_code == 401
        assert client.post(url, json={"token": "x"}, headers=base_headers()).status_code == 400


def test_a_request_of_the_workspace_that_could_not_be_handed_on_is_refused(gateway: RunningGateway) -> None:
    gateway.configure({})
    url = f"{gateway.control.base_url}/requests"
    answer = httpx.post(url, json={"mcp": nested(300), "token": "x"}, headers=base_headers(), timeout=BOUND_S)
    assert (answer.status_code, answer.json()) == (400, {"error": "The body is nested more than 240 deep."})


async def test_the_gateway_logs_no_credential(gateway: RunningGateway) -> None:
    status = gateway.configure({"echo": echo({"ECHO_API_KEY": "very-secret-value"})})
    async with gateway.client("legacy") as client:
        await client.call_tool("whoami", {})
    assert status["echo"]["state"] == "ready"
    assert "very-secret-value" not in gateway.log
    assert TOKEN not in gateway.log
    assert "very-secret-value" not in str(status)


def test_servers_run_under_a_uid_of_their_own_where_the_gateway_is_root(tmp_path: Path) -> None:
    show = {"type": "stdio", "command": ["/bin/sh", "-c", "echo $(id -u) $(id -g) $(stat -c %u:%a .) >&2"], "env": {}}
    with running_gateway(tmp_path, server_users="own") as gateway:
        status = gateway.configure({"one": show, "two": show})
    uids = [20000, 20001] if os.geteuid() == 0 else [os.getuid()] * 2
    gids = [20000, 20001] if os.geteuid() == 0 else [os.getgid()] * 2
    for name, uid, gid in zip(("one", "two"), uids, gids, strict=True):
        assert status[name]["stderr"][-1] == f"{uid} {gid} {uid}:750"


async def test_what_a_server_started_goes_with_it_whatever_process_group_it_has(tmp_path: Path) -> None:
    shell = {
        "type": "stdio",
        "command": ["/bin/sh", "-c", "setsid sleep 1000 & while read -r _; do :; done"],
        "env": {},
    }

    def sleepers(parent: psutil.Process) -> list[psutil.Process]:
        return [child for child in parent.children(recursive=True) if child.name() == "sleep"]

    with running_gateway(tmp_path, server_users="own") as gateway:
        gateway.put_config({"shell": shell})
        process = psutil.Process(gateway.pid)
        await until(lambda: sleepers(process))
        (sleeper,) = sleepers(process)
        await until(lambda: os.getsid(sleeper.pid) == sleeper.pid)
        gateway.put_config({})
        if os.geteuid() == 0:
            await until(lambda: not sleeper.is_running() or sleeper.status() == psutil.STATUS_ZOMBIE)
        else:  # under the gateway's own user nothing tells it from what somebody else started
            sleeper.send_signal(signal.SIGKILL)
