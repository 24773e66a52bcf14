"""Tools that are a container per call: listed from the configuration, carried out by the control plane that polls."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from mcp import MCPError
from sandgate_gateway.container_results import META_RUN, result_of_run

from tests.gateway.running_gateway import RunningGateway, echo
from tests.gateway.wire import LegacyWire

SCHEMA = {
    "type": "object",
    "properties": {"args": {"type": "array", "items": {"type": "string"}}},
    "required": ["args"],
}
TOOLS = [{"name": "say", "description": "Says it.", "inputSchema": SCHEMA}]
CONTAINERS = {"type": "containers", "tools": TOOLS}


def outcome(
    stdout: bytes = b"",
    stderr: bytes = b"",
    exit_code: int | None = 0,
    note: str | None = None,
    cut: tuple[str, ...] = (),
) -> dict[str, Any]:
    streams = {"stdout": base64.b64encode(stdout).decode(), "stderr": base64.b64encode(stderr).decode()}
    return {"exitCode": exit_code, "note": note, "cut": list(cut), **streams}


class ControlPlane:
    """Polls as the real one does."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def poll(self, *known: str, wait_s: float = 10) -> list[dict[str, Any]]:
        answer = await self._http.get("/requests", params={"wait": wait_s, "known": ",".join(known)})
        return list(answer.raise_for_status().json()["requests"])

    async def settle(self, identifier: str, **body: Any) -> int:
        return (await self._http.post(f"/requests/{identifier}", json=body)).status_code


@asynccontextmanager
async def control_plane(gateway: RunningGateway) -> AsyncIterator[ControlPlane]:
    base, headers = str(gateway.control.base_url), {"Authorization": gateway.control.headers["Authorization"]}
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=30, trust_env=False) as http:
        yield ControlPlane(http)


@asynccontextmanager
async def calling(client: Any, tool: str = "say", **arguments: Any) -> AsyncIterator[asyncio.Task[Any]]:
    task = asyncio.create_task(client.call_tool(tool, arguments))
    yield task
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_tool_is_listed_with_its_real_schema_and_its_call_is_handed_to_the_control_plane(
    gateway: RunningGateway, mode: Any
) -> None:
    assert gateway.configure({"box": CONTAINERS})["box"]["state"] == "ready"
    async with control_plane(gateway) as plane, gateway.client(mode) as client:
        (tool,) = (await client.list_tools()).tools
        assert (tool.name, tool.description, tool.input_schema) == ("say", "Says it.", SCHEMA)
        async with calling(client, args=["-x", "a b"]) as call:
            (request,) = await plane.poll()
            run = {"server": "box", "tool": "say", "arguments": {"args": ["-x", "a b"]}}
            assert request == {"id": request["id"], "run": run}
            assert await plane.settle(request["id"], ok=True, outcome=outcome(b"hello\n", b"careful\n", 3)) == 200
            result = await call
    assert [block.text for block in result.content] == ["hello\n", "[exit code 3]\nstderr:\ncareful\n"]
    assert result.is_error
    assert result.meta[META_RUN] == {"exitCode": 3, "stderr": "careful\n", "note": None, "cut": []}


async def test_what_the_control_plane_refuses_is_a_result_for_the_model(gateway: RunningGateway) -> None:
    gateway.configure({"box": CONTAINERS})
    async with control_plane(gateway) as plane, gateway.client() as client, calling(client) as call:
        (request,) = await plane.poll()
        await plane.settle(request["id"], ok=False, message="$: 'args' is a required property")
        result = await call
    assert (result.is_error, result.content[0].text) == (True, "$: 'args' is a required property")


async def test_arguments_beyond_every_bound_never_reach_the_control_plane(gateway: RunningGateway) -> None:
    gateway.configure({"box": CONTAINERS})
    async with control_plane(gateway) as plane, gateway.client() as client:
        result = await client.call_tool("say", {"args": ["x" * 1024 * 1024]})
        assert "longer than 1048576 bytes" in str(result.content)
        assert await plane.poll(wait_s=0) == []


async def test_rules_names_and_discovery_hold_for_container_tools(gateway: RunningGateway) -> None:
    tools = [*TOOLS, {"name": "echo", "description": "", "inputSchema": SCHEMA}]
    box = {"transport": {"type": "containers", "tools": tools}, "tools": {"deny": ["say"], "rename": {"echo": "add"}}}
    gateway.configure({"box": box, "other": echo()})
    async with control_plane(gateway) as plane, gateway.client() as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert "box_add" in names
        assert "other_add" in names
        with pytest.raises(MCPError, match="Tool 'say' of server 'box' is not allowed in this sandbox"):
            await client.call_tool("say", {})
        async with calling(client, "box_add") as call:
            (request,) = await plane.poll()
            assert request["run"]["tool"] == "echo"
            await plane.settle(request["id"], ok=True, outcome=outcome(b"x"))
            await call
        gateway.put_config({"box": box}, discovery=True)
        async with calling(client, "call_tool", name="add", arguments={"args": ["y"]}) as call:
            (request,) = await plane.poll()
            assert request["run"] == {"server": "box", "tool": "echo", "arguments": {"args": ["y"]}}
            await plane.settle(request["id"], ok=True, outcome=outcome(b"found"))
            assert (await call).content[0].text == "found"


async def test_calls_are_handed_out_side_by_side_and_known_ones_by_their_id_only(gateway: RunningGateway) -> None:
    gateway.configure({"box": CONTAINERS})
    async with control_plane(gateway) as plane, gateway.client() as client:
        waiting = asyncio.create_task(plane.poll())
        async with calling(client, args=["first"]) as first:
            (one,) = await waiting
            async with calling(client, args=["second"]) as second:
                known, two = await plane.poll(one["id"])
                assert known == {"id": one["id"]}
                assert two["run"]["arguments"] == {"args": ["second"]}
                assert await plane.poll(one["id"], two["id"], wait_s=0.05) == [known, {"id": two["id"]}]
                await plane.settle(two["id"], ok=True, outcome=outcome(b"2"))
                assert (await second).content[0].text == "2"
                await plane.settle(one["id"], ok=True, outcome=outcome(b"1"))
                assert (await first).content[0].text == "1"
        assert await plane.poll(wait_s=0.05) == []


async def test_a_call_that_is_cancelled_is_taken_back_at_once(gateway: RunningGateway) -> None:
    gateway.configure({"box": CONTAINERS})
    async with control_plane(gateway) as plane, httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        params = {"name": "say", "arguments": {"args": []}}
        call = asyncio.create_task(session.send({"id": "c", "method": "tools/call", "params": params}))
        (request,) = await plane.poll()
        polling = asyncio.create_task(plane.poll(request["id"]))
        await session.notify("notifications/cancelled", {"requestId": "c"})
        assert await polling == []
        assert await plane.settle(request["id"], ok=True, outcome=outcome(b"late")) == 404
        await call


async def test_a_modern_client_that_hangs_up_takes_its_call_back(gateway: RunningGateway) -> None:
    gateway.configure({"box": CONTAINERS})
    async with control_plane(gateway) as plane, gateway.client() as client:
        async with calling(client, args=[]):
            (request,) = await plane.poll()
        assert await plane.poll(request["id"]) == []


async def test_a_call_whose_server_is_removed_fails_and_is_taken_back(gateway: RunningGateway) -> None:
    gateway.configure({"box": CONTAINERS})
    async with control_plane(gateway) as plane, gateway.client() as client, calling(client, args=[]) as call:
        (request,) = await plane.poll()
        await asyncio.to_thread(gateway.put_config, {})
        assert await plane.poll(request["id"]) == []
        with pytest.raises(MCPError, match="server 'box' was stopped"):
            await call


async def test_a_call_is_never_handed_out_twice(gateway: RunningGateway) -> None:
    gateway.configure({"box": CONTAINERS})
    async with control_plane(gateway) as plane, gateway.client() as client, calling(client, args=[]) as call:
        await plane.poll()
        assert await plane.poll(wait_s=0.05) == []  # as a control plane does that was started anew
        result = await call
    assert result.is_error
    assert "started anew" in result.content[0].text


async def test_a_poll_ends_when_a_newer_one_comes_so_that_nobody_gone_is_handed_a_call(
    gateway: RunningGateway,
) -> None:
    gateway.configure({"box": CONTAINERS})
    async with control_plane(gateway) as plane, gateway.client() as client:
        older = asyncio.create_task(plane.poll())
        while not older.done():
            newer = asyncio.create_task(plane.poll())
            await asyncio.wait([older], timeout=0.1)
            if not older.done():
                newer.cancel()
        assert await older == []
        async with calling(client, args=[]) as call:
            (request,) = await newer
            await plane.settle(request["id"], ok=True, outcome=outcome(b"x"))
            await call


async def test_more_calls_than_can_wait_are_told_so(gateway: RunningGateway) -> None:
    gateway.configure({"box": CONTAINERS})
    async with control_plane(gateway) as plane, gateway.client() as client:
        calls = [asyncio.create_task(client.call_tool("say", {"args": []})) for _ in range(65)]
        done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = [task.result() for task in done]
        assert "Too many calls" in str(refused.content)
        requests: list[dict[str, Any]] = []
        while len(requests) < 64:
            requests = await plane.poll(*(one["id"] for one in requests))
        for request in requests:
            await plane.settle(request["id"], ok=True, outcome=outcome(b"x"))
        await asyncio.wait(waiting)
        assert {task.result().is_error for task in waiting} == {False}


@pytest.mark.parametrize(
    ("transport", "problem"),
    [
        ({"tools": "x"}, "server 'box': tools must be a list"),
        ({"tools": [{"inputSchema": {}}]}, "server 'box': tools[0].name must be a string"),
        ({"tools": [{"name": "a"}]}, "server 'box': tools[0].inputSchema must be an object"),
    ],
)
def test_container_tools_that_are_none_are_refused(
    gateway: RunningGateway, transport: dict[str, Any], problem: str
) -> None:
    entry = {"name": "box", "transport": {"type": "containers", **transport}}
    answer = gateway.control.put("/config", json={"servers": [entry]})
    assert (answer.status_code, problem in answer.json()["error"]) == (400, True)


LATE = "it was ended after 5 s"
PNG = b"\x89PNG\r\n\x1a\n rest"


@pytest.mark.parametrize(
    ("left", "texts"),
    [
        (outcome(b"hello"), ["hello"]),
        (outcome(b"hello", b"100 %"), ["hello", "[exit code 0]\nstderr:\n100 %"]),
        (outcome(), ["[exit code 0; it wrote nothing]"]),
        (outcome(exit_code=1), ["[exit code 1; it wrote nothing]"]),
        (outcome(exit_code=None, note=LATE), ["[it did not come to run; it wrote nothing; it was ended after 5 s]"]),
        (outcome(b"hel", exit_code=137, note=LATE), ["hel", "[exit code 137; it was ended after 5 s]"]),
        (
            outcome("é".encode()[:1], cut=("stdout",)),
            ["", "[exit code 0; stdout was longer than the first 1 bytes given]"],
        ),
        (
            outcome("é!".encode(), cut=("stdout",)),
            ["é!", "[exit code 0; stdout was longer than the first 3 bytes given]"],
        ),
        (outcome(b"", b"\xff\n"), ["[exit code 0]\nstderr:\n\ufffd\n"]),
    ],
)
def test_a_result_has_stdout_by_itself_and_everything_else_in_one_more_text(
    left: dict[str, Any], texts: list[str]
) -> None:
    result = result_of_run(left)
    assert [block["text"] for block in result["content"]] == [text for text in texts if text]
    assert result["isError"] is (left["exitCode"] != 0)


def test_output_that_is_no_text_is_attached_as_what_it_is() -> None:
    image = result_of_run(outcome(PNG))
    assert image["content"] == [{"type": "image", "data": base64.b64encode(PNG).decode(), "mimeType": "image/png"}]
    binary = result_of_run(outcome(b"\xff\xfe\x00"))
    assert binary["content"] == [
        {
            "type": "resource",
            "resource": {"uri": "sandgate:stdout", "mimeType": "application/octet-stream", "blob": "//4A"},
        },
        {"type": "text", "text": "[exit code 0; stdout is no UTF-8 text, its 3 bytes are attached]"},
    ]
    half = result_of_run(outcome(PNG, cut=("stdout",)))
    assert half["content"][0]["type"] == "resource"
