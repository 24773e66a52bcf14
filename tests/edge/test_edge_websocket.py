"""WebSockets through the edge, with real clients."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import threading

import aiohttp
import httpx
import pytest
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import Event
from websockets.typing import Subprotocol

from app.edge.edge import Edge
from app.edge.server import EmbeddedServer, server_config
from tests.edge.applications import Echo, mirror
from tests.edge.conftest import DOMAIN, Front, to
from tests.edge.serving import Pod, Pods, new_address, serving, talking, with_lifespan
from tests.waiting import BOUND_S, until


async def test_messages_of_both_kinds_pass_in_both_directions(front: Front) -> None:
    echo = Echo()
    pod = front.sandbox(echo, port=8888)
    async with connect(front.ws("/a%2Fb?x=1"), additional_headers=to(pod, 8888), proxy=None, max_size=None) as client:
        for message in ("text ä", b"\x00\xff", "", b"", "x" * 1_000_000, bytes(5_000_000)):
            await client.send(message)
            assert await client.recv() == message
    assert echo.scope["raw_path"] == b"/a%2Fb"
    assert echo.scope["query_string"] == b"x=1"


async def test_the_handshakes_headers_and_subprotocol_pass(front: Front) -> None:
    echo = Echo()
    pod = front.sandbox(echo, port=8888)
    headers = to(pod, 8888) | {"Authorization": "Bearer x", "Cookie": "c=1", "Origin": "https://app.test"}
    offered = [Subprotocol("one"), Subprotocol("two")]
    async with connect(front.ws(), additional_headers=headers, subprotocols=offered, proxy=None) as client:
        assert client.subprotocol == "two"
        assert client.response is not None
        assert client.response.headers.get_all("set-cookie") == ["a=1"]
    seen = dict(echo.scope["headers"])
    assert echo.scope["subprotocols"] == ["one", "two"]
    assert seen[b"authorization"] == b"Bearer x"
    assert seen[b"cookie"] == b"c=1"
    assert seen[b"origin"] == b"https://app.test"
    assert seen[b"host"] == f"127.0.0.1:{front.server.port}".encode()
    assert [name for name, _ in echo.scope["headers"]].count(b"host") == 1


async def test_the_host_label_routes_a_websocket(front: Front) -> None:
    pod = front.sandbox(Echo(), port=8888)
    host = f"8888-{pod.sandbox_id}.{DOMAIN}"
    async with aiohttp.ClientSession() as session, session.ws_connect(front.url, headers={"Host": host}) as client:
        await client.send_str("hello")
        assert await client.receive_str() == "hello"


@pytest.mark.parametrize(("code", "reason"), [(1000, "done"), (1001, "away"), (3000, "own"), (4999, "last")])
async def test_the_pods_close_code_reaches_the_client(front: Front, code: int, reason: str) -> None:
    pod = front.sandbox(Echo(), port=8888)
    async with connect(front.ws(), additional_headers=to(pod, 8888), proxy=None) as client:
        await client.send(f"close {code} {reason}")
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, reason)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "bye"), (4321, "own")])
async def test_the_clients_close_code_reaches_the_pod(front: Front, code: int, reason: str) -> None:
    echo = Echo()
    pod = front.sandbox(echo, port=8888)
    async with connect(front.ws(), additional_headers=to(pod, 8888), proxy=None) as client:
        await client.close(code, reason)
    await until(lambda: echo.disconnected)
    assert echo.disconnected == [(code, reason)]


async def test_a_client_that_is_lost_is_not_reported_as_closed_in_order(front: Front) -> None:
    echo = Echo()
    pod = front.sandbox(echo, port=8888)
    async with connect(front.ws(), additional_headers=to(pod, 8888), proxy=None) as client:
        client.transport.abort()
        await until(lambda: echo.disconnected)
    assert echo.disconnected[0][1] is None  # uvicorn's sign of a lost connection


async def test_a_pod_that_is_lost_is_a_bad_gateway(front: Front) -> None:
    accepted = threading.Event()

    async def handshake_then_hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_for(key.partition(b": ")[2]) + b"\r\n\r\n"
        )
        await writer.drain()
        await asyncio.to_thread(accepted.wait, 10)

    pod = front.pods.add(Pod("ilost", new_address()))
    assert pod.address
    async with (
        talking(handshake_then_hang_up, pod.address, 8888),
        connect(front.ws(), additional_headers=to(pod, 8888), proxy=None) as client,
    ):
        accepted.set()
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1014


def accept_for(key: bytes) -> bytes:
    """RFC 6455, section 4.2.2."""
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


async def test_a_message_from_the_pod_that_is_too_big_closes_with_1009(front: Front) -> None:
    @with_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": bytes(16 * 1024 * 1024 + 1)})

    pod = front.sandbox(app, port=8888)
    async with connect(front.ws(), additional_headers=to(pod, 8888), proxy=None) as client:
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


class CountingPings(ClientConnection):
    pings = 0

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            self.pings += 1
        super().process_event(event)


async def test_a_client_whose_answers_to_pings_wait_behind_its_messages_is_not_cut_off() -> None:
    may_read = threading.Event()

    @with_lifespan
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.to_thread(may_read.wait, BOUND_S)
        message = await receive()
        while message["type"] == "websocket.receive" and message.get("text") != "end":
            message = await receive()
        await send({"type": "websocket.send", "text": "all is here"})

    async def upload(client: ClientConnection) -> None:
        for _ in range(32):  # more than the buffers on the way
            await client.send(bytes(1024 * 1024))
        await client.send("end")

    pods = Pods(pod := Pod("islow", new_address()))
    assert pod.address
    edge = Edge(mirror, pods, sandbox_domain=None, resume=pods.resume)
    config = server_config(edge, lifespan="off")
    # Its pings hundreds of times sooner, and its patience with them as much shorter.
    assert config.ws_ping_interval
    config.ws_ping_interval /= 400
    if config.ws_ping_timeout is not None:
        config.ws_ping_timeout /= 400
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
    server = EmbeddedServer(config)
    with serving(slow, pod.address, 8888):
        async with edge, asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve([listener]))
            try:
                async with connect(
                    url,
                    additional_headers=to(pod, 8888),
                    proxy=None,
                    ping_interval=None,
                    compression=None,
                    create_connection=CountingPings,
                ) as client:
                    assert isinstance(client, CountingPings)
                    tasks.create_task(upload(client))
                    await until(lambda: client.pings >= 3)
                    may_read.set()
                    async with asyncio.timeout(BOUND_S):
                        assert await client.recv() == "all is here"
            finally:
                may_read.set()
                server.should_exit = True


@pytest.mark.parametrize("host", ["x:port", "[::1", "a b", "x:99999", ""])
async def test_an_odd_host_does_no_harm(front: Front, host: str) -> None:
    pod = front.sandbox(Echo(), port=8888)
    handshake = {
        "Host": host,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in (to(pod, 8888) | handshake).items())
    reader, writer = await asyncio.open_connection(front.server.host, front.server.port)
    writer.write(f"GET / HTTP/1.1\r\n{lines}\r\n".encode())
    async with asyncio.timeout(BOUND_S):
        assert (await reader.readline()).startswith(b"HTTP/1.1 101")
    writer.close()
    await writer.wait_closed()


async def test_a_refused_handshake_is_passed_on(front: Front) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\nContent-Length: 5\r\n\r\nlogin")

    pod = front.pods.add(Pod("irefuses", new_address()))
    assert pod.address
    async with talking(refuse, pod.address, 8888):
        with pytest.raises(InvalidStatus) as refused:
            async with connect(front.ws(), additional_headers=to(pod, 8888), proxy=None):
                pass
    response = refused.value.response
    assert (response.status_code, response.body) == (401, b"login")
    assert response.headers["www-authenticate"] == "Bearer"


async def test_a_pods_redirect_is_the_clients_to_follow(front: Front) -> None:
    """The control plane must not be sent anywhere by a pod."""
    visited: list[bytes] = []

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visited.append(await reader.read(1))

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: ws://%b:8889/\r\nContent-Length: 0\r\n\r\n" % elsewhere.encode())

    elsewhere = new_address()
    pod = front.pods.add(Pod("iredirects", new_address()))
    assert pod.address
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    async with (
        talking(redirect, pod.address, 8888),
        talking(visit, elsewhere, 8889),
        httpx.AsyncClient(timeout=BOUND_S) as client,
    ):
        response = await client.get(front.url, headers=to(pod, 8888) | handshake)
    assert response.status_code == 302
    assert visited == []


@pytest.mark.parametrize(
    ("sandbox", "port", "status", "text"),
    [
        ("igone", "8888", 502, "was not found"),
        ("ihere", "8888", 502, "port is not open"),
        ("ihere", "50006", 404, "Not found"),
        ("ihere", "70000", 400, "not valid"),
    ],
)
async def test_what_cannot_be_reached_is_answered_before_the_handshake(
    front: Front, sandbox: str, port: str, status: int, text: str
) -> None:
    front.pods.add(Pod("ihere", new_address()))
    headers = {"E2b-Sandbox-Id": sandbox, "E2b-Sandbox-Port": port}
    with pytest.raises(InvalidStatus) as refused:
        async with connect(front.ws(), additional_headers=headers, proxy=None):
            pass
    assert refused.value.response.status_code == status
    assert text.encode() in (refused.value.response.body or b"")
