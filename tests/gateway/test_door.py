"""Servers behind stdio frames: the workspace's door and the socket of an image server.

docs/ARCHITECTURE.md, 6.2 and 6.3.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.running_gateway import FIXTURES, RunningGateway

ECHO = [sys.executable, str(FIXTURES / "echo_server.py"), "--stdio"]


def frame(kind: int, payload: bytes) -> bytes:
    return bytes([kind]) + len(payload).to_bytes(4, "big") + payload


async def run_framed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, command: list[str]) -> None:
    """One run of a program: raw stdin in, frames out."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None

    async def outward(kind: int, source: asyncio.StreamReader) -> None:
        while data := await source.read(1000):
            writer.write(frame(kind, data))

    async def inward(sink: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            sink.write(data)
        sink.close()

    async with asyncio.TaskGroup() as group:
        feeding = group.create_task(inward(child.stdin))
        for kind, source in ((1, child.stdout), (2, child.stderr)):
            group.create_task(outward(kind, source))
        code = await child.wait()
        feeding.cancel()
    writer.write(frame(3, json.dumps({"exitCode": code} if code >= 0 else {"signal": -code}).encode()))
    with suppress(ConnectionError):
        await writer.drain()
    writer.close()


@asynccontextmanager
async def door(first_lines: list[Any], token: str = "door-token") -> AsyncIterator[int]:
    """The agent's side of 6.2, on a free port; what the first lines said is appended to `first_lines`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = json.loads(await reader.readline())
        first_lines.append(first)
        if first["token"] != token:
            writer.close()
            return
        if first["command"] == ["nothing"]:
            writer.write(frame(2, b"cloning\n") + frame(3, b'{"error": "could not start: no such program"}'))
            writer.close()
            return
        await run_framed(reader, writer, first["command"])

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def configure(gateway: RunningGateway, servers: Any, **options: Any) -> dict[str, Any]:
    """In a thread, because the door runs in this event loop."""
    return await asyncio.to_thread(gateway.configure, servers, **options)


def workspace(command: list[str], **more: Any) -> dict[str, Any]:
    return {"type": "workspace", "command": command, "env": {"K": "v"}, "cwd": None, **more}


async def test_a_server_in_the_workspace_is_started_through_the_door(gateway: RunningGateway) -> None:
    first_lines: list[Any] = []
    async with door(first_lines) as port:
        at = {"host": "127.0.0.1", "port": port, "token": "door-token"}
        status = await configure(gateway, {"github/o/r": workspace(ECHO, repository="git://x/o/r")}, stdioDoor=at)
        assert status["github/o/r"]["state"] == "ready"
        async with gateway.client() as client:
            text = "x" * 200_000
            assert (await client.call_tool("echo", {"text": text})).structured_content == {"result": text}
            with pytest.raises(Exception, match="exited with code 4"):
                await client.call_tool("exit", {"code": 4})
            assert (await client.call_tool("add", {"a": 1, "b": 1})).structured_content == {"result": 2}
        await asyncio.to_thread(gateway.put_config, {})
    assert first_lines[0] == {
        "token": "door-token",
        "server": "github/o/r",
        "command": ECHO,
        "env": {"K": "v"},
        "cwd": None,
        "user": "user",
        "repository": "git://x/o/r",
        "install": None,
    }


async def test_a_program_the_door_cannot_start_has_failed_with_the_doors_words(gateway: RunningGateway) -> None:
    async with door([]) as port:
        at = {"host": "127.0.0.1", "port": port, "token": "door-token"}
        status = await configure(gateway, {"none": workspace(["nothing"])}, stdioDoor=at)
    assert status["none"]["message"] == "could not start: no such program before it answered initialize"
    assert status["none"]["stderr"][-1] == "cloning"


async def test_a_wrong_door_token_is_told(gateway: RunningGateway) -> None:
    async with door([]) as port:
        at = {"host": "127.0.0.1", "port": port, "token": "wrong"}
        status = await configure(gateway, {"a": workspace(ECHO)}, stdioDoor=at)
    assert status["a"]["state"] == "failed"
    assert "refuses the token or was closed" in status["a"]["message"]


async def test_the_door_is_waited_for(gateway: RunningGateway) -> None:
    first_lines: list[Any] = []
    async with door(first_lines) as port:
        pass
    at = {"host": "127.0.0.1", "port": port, "token": "door-token"}
    status = await configure(gateway, {"a": workspace(ECHO)}, stdioDoor=at, start_timeout_s=1)
    assert status["a"]["message"] == "could not be reached at the workspace's stdio door: Connection refused"


async def test_an_image_server_is_reached_through_its_socket(gateway: RunningGateway, tmp_path: Path) -> None:
    path = str(tmp_path / "stdio.sock")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await run_framed(reader, writer, ECHO)

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        status = await configure(gateway, {"image": {"type": "socket", "path": path}})
        assert status["image"]["state"] == "ready"
        async with gateway.client("legacy") as client:
            assert (await client.call_tool("add", {"a": 2, "b": 2})).structured_content == {"result": 4}
        await asyncio.to_thread(gateway.put_config, {})
