"""Services that listen on 127.0.0.1 only inside the sandbox, reached through the pod's agent."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson
import psutil
import pytest
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.edge.connection import Connection
from app.edge.dialling import Dialler
from app.edge.routing import Route
from tests.edge.agent_process import running_agent
from tests.edge.applications import Echo, mirror
from tests.edge.conftest import Front, to
from tests.edge.serving import Pod, Serving, new_address, talking, with_lifespan
from tests.waiting import BOUND_S, until

TOKEN = "dial-token"
MIB = 1024 * 1024
PIECE = bytes(range(256)) * 256  # 64 KiB

_names = (f"iloopback{number}" for number in itertools.count(1))


@dataclass(frozen=True)
class Workspace:
    pod: Pod
    agent: psutil.Process


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    address = new_address()
    with running_agent(address, tmp_path_factory.mktemp("agent"), stdio_token=TOKEN) as process:
        yield address, process


@pytest.fixture
def workspace(front: Front, agent: tuple[str, subprocess.Popen[bytes]]) -> Workspace:
    """A sandbox with a real agent. Its loopback is that of the tests."""
    address, process = agent
    return Workspace(front.pods.add(Pod(next(_names), address, dial_token=TOKEN)), psutil.Process(process.pid))


def on_loopback(front: Front, app: object, host: str = "127.0.0.1") -> Serving:
    return front.serve(Pod("", host), app, port=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_service_on_loopback_is_reached(
    front: Front, workspace: Workspace, client: httpx.AsyncClient, host: str
) -> None:
    service = on_loopback(front, mirror, host)
    for method, content in (("GET", b""), ("POST", b"body"), ("PUT", PIECE), ("GET", b"")):
        response = await client.request(method, "/a?b=c", headers=to(workspace.pod, service.port), content=content)
        assert response.status_code == 200
        assert (response.json()["method"], response.json()["target"]) == (method, "/a?b=c")
        assert response.json()["body"].encode("latin-1") == content


async def test_a_websocket_on_loopback_is_reached(front: Front, workspace: Workspace) -> None:
    echo = Echo()
    headers = to(workspace.pod, on_loopback(front, echo).port)
    for _ in range(2):
        async with connect(front.ws(), additional_headers=headers, proxy=None) as client:
            for message in ("text", bytes(300_000)):
                await client.send(message)
                assert await client.recv() == message
            await client.send("close 4321 own")
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4321, "own")


async def test_a_port_without_a_service_is_not_open(
    front: Front, workspace: Workspace, client: httpx.AsyncClient
) -> None:
    service = on_loopback(front, mirror)
    service.stop()
    response = await client.get("/", headers=to(workspace.pod, service.port))
    assert response.status_code == 502
    assert response.json() == {
        "sandboxId": workspace.pod.sandbox_id,
        "message": "The sandbox is running but port is not open",
        "port": service.port,
        "code": 502,
    }
    with pytest.raises(InvalidStatus) as refused:
        async with connect(front.ws(), additional_headers=to(workspace.pod, service.port), proxy=None):
            pass
    assert refused.value.response.status_code == 502


async def test_a_service_that_goes_is_not_open_and_one_that_comes_back_is_reached(
    front: Front, workspace: Workspace, client: httpx.AsyncClient
) -> None:
    service = on_loopback(front, mirror)
    headers = to(workspace.pod, service.port)
    assert (await client.get("/", headers=headers)).status_code == 200
    service.stop()
    assert (await client.post("/", headers=headers)).status_code == 502
    again = Serving(mirror, "127.0.0.1", service.port)
    again.start()
    try:
        assert (await client.get("/", headers=headers)).status_code == 200
    finally:
        again.stop()


async def test_a_gib_goes_up_and_down_with_flat_memory(
    front: Front, workspace: Workspace, client: httpx.AsyncClient
) -> None:
    size = 1024 * MIB

    @with_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received, more = 0, True
        while more:
            message = await receive()
            received += len(message.get("body", b""))
            more = message.get("more_body", False)
        headers = [(b"x-received", b"%d" % received), (b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(size // len(PIECE)):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(size // len(PIECE)):
            yield PIECE

    headers = to(workspace.pod, on_loopback(front, app).port)
    agent_before, own_before = workspace.agent.memory_info().rss, psutil.Process().memory_info().rss
    received = 0
    async with client.stream("PUT", "/", headers=headers, content=upload()) as response:
        assert response.headers["x-received"] == str(size)
        async for piece in response.aiter_raw():
            received += len(piece)
    assert received == size
    assert workspace.agent.memory_info().rss - agent_before < 32 * MIB
    assert psutil.Process().memory_info().rss - own_before < 64 * MIB


async def test_a_client_that_hangs_up_is_felt_by_the_service(front: Front, workspace: Workspace) -> None:
    events: list[str] = []

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        events.append("begun")
        await reader.read()
        events.append("gone")

    async with (
        talking(conversation, "127.0.0.1", 0) as service,
        httpx.AsyncClient(base_url=front.url, timeout=BOUND_S) as client,
    ):
        async with client.stream("GET", "/", headers=to(workspace.pod, service.port)):
            await until(lambda: events)
        await until(lambda: events == ["begun", "gone"])


async def test_a_killed_sandbox_breaks_streams_from_loopback(
    front: Front, workspace: Workspace, client: httpx.AsyncClient
) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await reader.read()

    async with talking(conversation, "127.0.0.1", 0) as service:
        async with client.stream("GET", "/", headers=to(workspace.pod, service.port)) as response:
            pieces = response.aiter_raw()
            assert await anext(pieces) == b"first"
            front.drop(workspace.pod.sandbox_id)
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(pieces)
        response = await client.get("/", headers=to(workspace.pod, service.port))
        assert response.json()["message"] == "The sandbox was not found"


async def test_an_agent_that_is_killed_breaks_streams_from_loopback(
    front: Front, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await reader.read()

    pod = front.pods.add(Pod(next(_names), new_address(), dial_token=TOKEN))
    assert pod.address
    with running_agent(pod.address, tmp_path, stdio_token=TOKEN) as process:
        async with talking(conversation, "127.0.0.1", 0) as service:
            async with client.stream("GET", "/", headers=to(pod, service.port)) as response:
                pieces = response.aiter_raw()
                assert await anext(pieces) == b"first"
                process.kill()
                with pytest.raises(httpx.RemoteProtocolError):
                    await anext(pieces)
            response = await client.get("/", headers=to(pod, service.port))
            assert response.json()["message"] == "The sandbox is running but port is not open"


class Door:
    """A raw agent's door that says the same to everybody, and lists the ports it was asked for."""

    def __init__(self, says: bytes) -> None:
        self.says = says
        self.asked: list[int] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = orjson.loads(await reader.readline())
        assert request["token"] == TOKEN
        self.asked.append(request["dial"]["port"])
        writer.write(self.says)
        if b"true" in self.says:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndoor")


@pytest.fixture
def pod(front: Front) -> Pod:
    return front.pods.add(Pod(next(_names), new_address(), dial_token=TOKEN))


@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"\n",
        b'{"connected": false}\n',
        b'{"connected": 1.5}\n',
        b'"connected"\n',
        b"\x03\x00\x00\x00\x09{}\n",
        b"x" * 100_000,
    ],
    ids=["nothing", "empty", "false", "number", "text", "an older agent", "no end"],
)
async def test_whatever_else_the_agent_says_the_port_is_not_open(
    pod: Pod, client: httpx.AsyncClient, says: bytes
) -> None:
    assert pod.address
    async with talking(Door(says), pod.address, 49984):
        response = await client.get("/", headers=to(pod, 8000))
    assert (response.status_code, response.json()["port"]) == (502, 8000)


async def test_a_service_that_speaks_before_it_is_asked_is_a_bad_gateway(pod: Pod, client: httpx.AsyncClient) -> None:
    assert pod.address
    async with talking(Door(b'{"connected": true}\nSSH-2.0-x\r\n'), pod.address, 49984):
        response = await client.get("/", headers=to(pod, 22))
    assert response.status_code == 502
    assert "without a valid answer" in response.json()["message"]


async def test_an_agent_that_does_not_answer_is_waited_for_no_longer_than_a_connection(
    pod: Pod, client: httpx.AsyncClient
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    assert pod.address
    async with talking(silent, pod.address, 49984):
        response = await client.get("/", headers=to(pod, 8000))
    assert response.json()["message"] == "The sandbox is running but port is not open"


@pytest.mark.parametrize("port", [49983, 50005])
async def test_the_pods_own_ports_are_never_asked_for(pod: Pod, client: httpx.AsyncClient, port: int) -> None:
    door = Door(b'{"connected": true}\n')
    assert pod.address
    async with talking(door, pod.address, 49984):
        response = await client.get("/health", headers=to(pod, port))
    assert (response.status_code, response.json()["port"]) == (502, port)
    assert door.asked == []


async def test_without_a_token_the_agent_is_not_asked(front: Front, client: httpx.AsyncClient) -> None:
    pod = front.pods.add(Pod(next(_names), new_address()))
    door = Door(b'{"connected": true}\n')
    assert pod.address
    async with talking(door, pod.address, 49984):
        assert (await client.get("/", headers=to(pod, 8000))).status_code == 502
    assert door.asked == []


async def test_the_way_that_led_to_a_port_is_tried_first_and_the_other_when_it_fails(
    pod: Pod, client: httpx.AsyncClient
) -> None:
    async def straight(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nstraight")

    async def ask() -> str:
        return (await client.post("/", headers=to(pod, 8000))).text

    door = Door(b'{"connected": true}\n')
    assert pod.address
    async with talking(door, pod.address, 49984):
        assert await ask() == "door"
        async with talking(straight, pod.address, 8000):
            assert await ask() == "door"
            assert door.asked == [8000, 8000]
            door.says = b'{"error": "Connection refused"}\n'
            assert await ask() == "straight"
            assert door.asked == [8000, 8000, 8000]
            assert await ask() == "straight"
            assert door.asked == [8000, 8000, 8000]
        door.says = b'{"connected": true}\n'
        assert await ask() == "door"
        assert door.asked == [8000, 8000, 8000, 8000]


async def test_the_ways_to_a_dropped_sandbox_are_forgotten(pod: Pod) -> None:
    async def straight(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    dialler, door = Dialler(), Door(b'{"connected": true}\n')
    assert pod.address
    route = Route(pod, pod.address, 8000, b"/")
    async with asyncio.timeout(BOUND_S), talking(door, pod.address, 49984):
        (await dialler.connect(Connection, route)).abort()
        assert door.asked == [8000]
        dialler.forget(pod.sandbox_id)
        async with talking(straight, pod.address, 8000):
            (await dialler.connect(Connection, route)).abort()
    assert door.asked == [8000]
