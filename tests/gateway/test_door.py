"""Servers behind stdio frames: the workspace's door, and the socket at which image servers call.

docs/ARCHITECTURE.md, 6.2 and 6.3.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.running_gateway import FIXTURES, RunningGateway, running_gateway
from tests.waiting import BOUND_S, until

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

    try:
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(inward(child.stdin))
            for kind, source in ((1, child.stdout), (2, child.stderr)):
                group.create_task(outward(kind, source))
            code = await child.wait()
            feeding.cancel()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
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


BRIDGE_TOKEN = "token-of-the-bridge"
BRIDGE = {"type": "bridge", "token": BRIDGE_TOKEN}
GREETING = BRIDGE_TOKEN.encode() + b"\n"


@asynccontextmanager
async def bridge(path: Path, token: str = BRIDGE_TOKEN) -> AsyncIterator[list[asyncio.Task[None]]]:
    """The container's side of 6.3; gives its runs so far. At the end it is gone with all of them."""
    runs: list[asyncio.Task[None]] = []

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await run_framed(reader, writer, ECHO)
        finally:
            writer.close()

    async def is_taken_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(token.encode() + b"\n")
        with suppress(ConnectionError):
            return await reader.read(1) == b"\x01"
        return False

    async def offer_again_and_again(group: asyncio.TaskGroup) -> None:
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_unix_connection(path)
                try:
                    taken_up = await is_taken_up(reader, writer)
                except asyncio.CancelledError:
                    writer.close()
                    raise
                if taken_up:
                    runs.append(group.create_task(run(reader, writer)))
                    continue
                writer.close()
            await asyncio.sleep(0.02)

    async def live() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(offer_again_and_again(group))

    life = asyncio.create_task(live())
    try:
        yield runs
    finally:
        life.cancel()
        await asyncio.wait([life])


async def add(gateway: RunningGateway, a: int, b: int) -> Any:
    async with gateway.client("legacy") as client:
        return (await client.call_tool("add", {"a": a, "b": b})).structured_content


async def is_hung_up_on(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ends, within the bound, without a word."""
    async with asyncio.timeout(BOUND_S):
        with suppress(ConnectionError):
            return await reader.read(1) == b""
        return True


async def test_an_image_server_is_taken_up_when_it_calls_and_again_when_it_has_ended(gateway: RunningGateway) -> None:
    await asyncio.to_thread(gateway.put_config, {"image": BRIDGE})
    async with bridge(gateway.bridge_socket) as runs:
        assert (await configure(gateway, {"image": BRIDGE}))["image"]["state"] == "ready"
        assert len(runs) == 1
        async with gateway.client("legacy") as client:
            assert (await client.call_tool("add", {"a": 2, "b": 2})).structured_content == {"result": 4}
            with pytest.raises(Exception, match="exited with code 4"):
                await client.call_tool("exit", {"code": 4})
            assert (await client.call_tool("add", {"a": 1, "b": 1})).structured_content == {"result": 2}
        assert len(runs) == 2
        await asyncio.to_thread(gateway.put_config, {})


async def test_image_servers_are_told_apart_by_their_tokens(gateway: RunningGateway) -> None:
    one, other = ({"type": "bridge", "token": f"token of {name}"} for name in ("one", "other"))
    async with (
        bridge(gateway.bridge_socket, "token of one") as ones,
        bridge(gateway.bridge_socket, "token of other") as others,
    ):
        assert (await configure(gateway, {"one": one}))["one"]["state"] == "ready"
        assert (len(ones), len(others)) == (1, 0)
        status = await configure(gateway, {"one": one, "other": other})
        assert {name: server["state"] for name, server in status.items()} == {"one": "ready", "other": "ready"}
        assert (len(ones), len(others)) == (1, 1)
        assert await configure(gateway, {"other": other})
        await asyncio.wait(ones, timeout=BOUND_S)
        assert (len(ones), len(others)) == (1, 1)
        await asyncio.to_thread(gateway.put_config, {})


async def test_who_is_silent_or_greets_with_another_token_is_hung_up_on_and_what_has_not_called_is_told(
    gateway: RunningGateway,
) -> None:
    await asyncio.to_thread(gateway.put_config, {"image": BRIDGE}, start_timeout_s=6)
    silent, silent_writer = await asyncio.open_unix_connection(gateway.bridge_socket)
    for greeting in (b"wrong\n", b"\n", b"x" * 300, GREETING + b"and more", b"\xff\n"):
        reader, writer = await asyncio.open_unix_connection(gateway.bridge_socket)
        writer.write(greeting)
        assert await is_hung_up_on(reader), greeting
        writer.close()
    assert await is_hung_up_on(silent)
    silent_writer.close()
    status = (await asyncio.to_thread(gateway.status, 30))["image"]
    assert status["state"] == "failed"
    assert status["message"] == "could not be reached: its container has not called yet"


async def test_of_two_offers_of_one_server_the_newer_one_counts(gateway: RunningGateway) -> None:
    lazy = {"transport": BRIDGE, "start": "lazy", "remembered": {"tools": [{"name": "add", "inputSchema": {}}]}}
    await asyncio.to_thread(gateway.put_config, {"image": lazy})
    older, older_writer = await asyncio.open_unix_connection(gateway.bridge_socket)
    older_writer.write(GREETING)
    newer, newer_writer = await asyncio.open_unix_connection(gateway.bridge_socket)
    newer_writer.write(GREETING[:5])
    await newer_writer.drain()
    newer_writer.write(GREETING[5:])
    assert await is_hung_up_on(older)
    older_writer.close()
    # Whoever goes on talking before it is taken up is no bridge.
    newer_writer.write(b"x")
    assert await is_hung_up_on(newer)
    newer_writer.close()
    _, withdrawn = await asyncio.open_unix_connection(gateway.bridge_socket)
    withdrawn.write(GREETING)
    withdrawn.close()
    async with bridge(gateway.bridge_socket) as runs:
        assert await add(gateway, 2, 3) == {"result": 5}
        assert len(runs) == 1
        await asyncio.to_thread(gateway.put_config, {})


async def test_strangers_however_many_keep_no_image_server_out(gateway: RunningGateway) -> None:
    await asyncio.to_thread(gateway.put_config, {"image": BRIDGE})
    silent = [await asyncio.open_unix_connection(gateway.bridge_socket) for _ in range(100)]
    for reader, _ in silent[: 100 - 64]:
        assert await is_hung_up_on(reader)

    async def knock_without_end() -> None:
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_unix_connection(gateway.bridge_socket)
                try:
                    writer.write(b"wrong\n")
                    await is_hung_up_on(reader)
                finally:
                    writer.close()

    knocking = [asyncio.create_task(knock_without_end()) for _ in range(8)]
    async with bridge(gateway.bridge_socket):
        assert (await configure(gateway, {"image": BRIDGE}))["image"]["state"] == "ready"
        assert await add(gateway, 1, 2) == {"result": 3}
        await asyncio.to_thread(gateway.put_config, {})
    for task in knocking:
        task.cancel()
    await asyncio.wait(knocking)
    for _, writer in silent:
        writer.close()


async def test_a_container_that_starts_anew_is_found_again(gateway: RunningGateway) -> None:
    await asyncio.to_thread(gateway.put_config, {"image": BRIDGE})
    async with bridge(gateway.bridge_socket):
        assert await add(gateway, 1, 1) == {"result": 2}
    async with bridge(gateway.bridge_socket):
        assert await add(gateway, 1, 2) == {"result": 3}
        assert (await asyncio.to_thread(gateway.status))["image"]["restarts"] >= 1
        await asyncio.to_thread(gateway.put_config, {})


async def test_a_gateway_that_starts_anew_is_called_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("gateway")
    with running_gateway(folder) as first:
        async with bridge(first.bridge_socket) as runs:
            await configure(first, {"image": BRIDGE})
            os.kill(first.pid, signal.SIGKILL)
            await until(lambda: runs[0].done())
            assert first.bridge_socket.is_socket()
            with running_gateway(folder) as second:
                await configure(second, {"image": BRIDGE})
                assert await add(second, 4, 4) == {"result": 8}
                assert len(runs) == 2
                await asyncio.to_thread(second.put_config, {})


async def test_a_socket_that_cannot_be_made_is_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_gateway(tmp_path_factory.mktemp("gateway")) as gateway:
        gateway.bridge_socket.mkdir()
        status = await configure(gateway, {"image": BRIDGE}, start_timeout_s=0.5)
        assert status["image"]["message"] == "could not be reached at the socket its container calls at: Is a directory"
