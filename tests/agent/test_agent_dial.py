"""Dialling loopback ports through the agent's door, with real services behind it."""

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psutil
import pytest

from tests.agent.running_agent import STDIO_TOKEN, RunningAgent
from tests.ports import free_port
from tests.waiting import settled, until

MIB = 1024 * 1024
PIECE = bytes(range(256)) * 256  # 64 KiB

Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def dialled(
    agent: RunningAgent, port: Any, *, token: str = STDIO_TOKEN
) -> AsyncIterator[tuple[Any, asyncio.StreamReader, asyncio.StreamWriter]]:
    """What the agent answers, and the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", agent.door_port, limit=1024)
    writer.write(json.dumps({"token": token, "dial": {"port": port}}).encode() + b"\n")
    async with asyncio.timeout(30):
        line = await reader.readline()
    try:
        yield json.loads(line) if line else None, reader, writer
    finally:
        writer.transport.abort()


@asynccontextmanager
async def service(conversation: Conversation, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Serves on a loopback port of its own; conversations that still go on at the end are broken off."""
    open_now: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_now.add(writer)
        try:
            with contextlib.suppress(ConnectionError):
                await conversation(reader, writer)
        finally:
            writer.close()
            open_now.discard(writer)

    server = await asyncio.start_server(connected, host, 0, limit=1024)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in open_now:
            writer.transport.abort()
        await until(lambda: not open_now)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(MIB):
        writer.write(data)
        await writer.drain()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_bytes_pass_both_ways_to_a_service_on_loopback(agent: RunningAgent, host: str) -> None:
    async with service(echo, host) as port, dialled(agent, port) as (answer, reader, writer):
        assert answer == {"connected": True}
        for data in (b"one", b"\x00\xff\n", PIECE):
            writer.write(data)
            async with asyncio.timeout(30):
                assert await reader.readexactly(len(data)) == data


async def test_a_service_may_speak_first(agent: RunningAgent) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")

    for _ in range(20):
        async with service(greet) as port, dialled(agent, port) as (answer, reader, _writer):
            assert answer == {"connected": True}
            async with asyncio.timeout(30):
                assert await reader.read(100) == b"hello"


async def test_a_port_that_nobody_listens_on_is_said_to_be_closed(agent: RunningAgent) -> None:
    async with dialled(agent, free_port()) as (answer, reader, _):
        assert answer == {"error": "Connection refused"}
        async with asyncio.timeout(30):
            assert await reader.read() == b""


async def test_a_dial_that_nobody_accepts_ends_in_time(agent: RunningAgent) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        with full_backlog(port):
            async with dialled(agent, port) as (answer, _, _):
                assert answer == {"error": "timed out"}


@contextmanager
def full_backlog(port: int) -> Iterator[None]:
    """As many connections as the kernel queues for a listener that accepts none."""
    waiting: list[socket.socket] = []
    try:
        while True:
            waiting.append(socket.socket())
            waiting[-1].settimeout(0.3)
            try:
                waiting[-1].connect(("127.0.0.1", port))
            except TimeoutError:
                break
        yield
    finally:
        for connection in waiting:
            connection.close()


@pytest.mark.parametrize("port", [49983, 49984, 50006])
async def test_the_private_ports_are_not_dialled(agent: RunningAgent, port: int) -> None:
    async with dialled(agent, port) as (answer, reader, _):
        assert answer == {"error": "this port is private"}
        async with asyncio.timeout(30):
            assert await reader.read() == b""


@pytest.mark.parametrize("port", [0, 65536, -1, "80", True, None, 80.0])
async def test_what_is_no_port_closes_the_connection_without_a_word(agent: RunningAgent, port: Any) -> None:
    async with dialled(agent, port) as (answer, _, _):
        assert answer is None


async def test_a_wrong_token_closes_the_connection_without_a_word(agent: RunningAgent) -> None:
    reached: list[bool] = []

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(True)

    async with service(conversation) as port, dialled(agent, port, token="wrong") as (answer, _, _):
        assert answer is None
        assert reached == []


async def test_each_side_can_end_while_the_other_goes_on(agent: RunningAgent) -> None:
    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        total = 0
        while data := await reader.read(MIB):
            total += len(data)
        writer.write(b"%d;" % total + PIECE * 64)
        await writer.drain()

    async with service(answer_at_the_end) as port, dialled(agent, port) as (_, reader, writer):
        writer.write(PIECE * 64)
        writer.write_eof()
        async with asyncio.timeout(30):
            assert await reader.read() == b"%d;" % (64 * len(PIECE)) + PIECE * 64

    heard: list[bytes] = []

    async def stop_talking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"all I have")
        writer.write_eof()
        heard.append(await reader.read())

    async with service(stop_talking) as port, dialled(agent, port) as (_, reader, writer):
        async with asyncio.timeout(30):
            assert await reader.read() == b"all I have"
        writer.write(b"still here")
        writer.write_eof()
        await until(lambda: heard)
    assert heard == [b"still here"]


async def test_a_dialler_that_is_lost_ends_the_service_s_connection(agent: RunningAgent) -> None:
    events: list[str] = []

    async def wait_for_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        events.append("begun")
        try:
            await reader.read()
        finally:
            events.append("ended")

    async with service(wait_for_the_end) as port, dialled(agent, port) as (_, _, writer):
        await until(lambda: events)
        writer.transport.abort()
        await until(lambda: events == ["begun", "ended"])


async def test_a_service_that_is_killed_ends_the_dialler_s_connection(agent: RunningAgent) -> None:
    script = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True);"
        "c, _ = s.accept(); c.send(b'up'); c.recv(1); s.accept()"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    async with asyncio.timeout(30), dialled(agent, int(await process.stdout.readline())) as (_, reader, _):
        assert await reader.readexactly(2) == b"up"
        process.kill()
        with contextlib.suppress(ConnectionResetError):  # which of the two depends on what the service had not read
            assert await reader.read() == b""
        await process.wait()


async def test_a_side_that_does_not_read_stops_the_other(agent: RunningAgent) -> None:
    release = asyncio.Event()
    received = sent = 0

    async def read_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        await release.wait()
        while data := await reader.read(MIB):
            received += len(data)
        writer.write(b"done")

    async def send(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < 256 * MIB:
            writer.write(PIECE)
            await writer.drain()
            sent += len(PIECE)
        writer.write_eof()

    process = agent_process(agent)
    before = process.memory_info().rss
    async with service(read_late) as port, dialled(agent, port) as (_, reader, writer):
        sending = asyncio.create_task(send(writer))
        assert await settled(lambda: sent) < 64 * MIB
        release.set()
        async with asyncio.timeout(60):
            await sending
            assert await reader.read() == b"done"
    assert received == 256 * MIB

    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await send(writer)

    async with service(flood) as port, dialled(agent, port) as (_, reader, _):
        await until(lambda: sent)
        assert await settled(lambda: sent) < 64 * MIB
        total = 0
        async with asyncio.timeout(60):
            while data := await reader.read(MIB):
                total += len(data)
        assert total == 256 * MIB
    assert process.memory_info().rss - before < 32 * MIB


async def test_nothing_is_left_open_after_many_dials(agent: RunningAgent) -> None:
    process = agent_process(agent)
    before = process.num_fds()
    async with service(echo) as port:
        for abort in (True, False) * 20:
            async with dialled(agent, port) as (_, reader, writer):
                writer.write(b"x")
                async with asyncio.timeout(30):
                    assert await reader.readexactly(1) == b"x"
                    if not abort:
                        writer.write_eof()
                        assert await reader.read() == b""
        await until(lambda: process.num_fds() <= before)


def agent_process(agent: RunningAgent) -> psutil.Process:
    return psutil.Process(agent.process.pid)
