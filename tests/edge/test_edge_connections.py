"""Kept connections to pods: when one is used again, when a request is sent once more, and when it must not be."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from app.edge.connection import Connection
from app.edge.dialling import Dialler, key_of
from app.edge.pool import Pool
from app.edge.routing import Route
from tests.edge.conftest import Front, to
from tests.edge.serving import Pod, new_address, talking
from tests.waiting import BOUND_S, until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Counting:
    """A service that answers, counts its connections and requests, and can hang up on a kept connection."""

    def __init__(self, reply: bytes = OK, *, hangs_up_on_second: bool = False) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.closed = 0
        self._reply = reply
        self._hangs_up = hangs_up_on_second

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        answered = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"content-length: 4" in head:
                    await reader.readexactly(4)
                self.requests.append(head.partition(b" ")[0])
                if self._hangs_up and answered:
                    return
                writer.write(self._reply)
                answered += 1
        finally:
            self.closed += 1


@pytest.fixture
def pod(front: Front) -> Pod:
    return front.pods.add(Pod("ikept", new_address()))


async def ask(client: httpx.AsyncClient, pod: Pod, method: str, port: int) -> int:
    content = b"data" if method in ("POST", "PUT") else None
    return (await client.request(method, "/", headers=to(pod, port), content=content)).status_code


@pytest.mark.parametrize(("method", "port"), [("GET", 8000), ("PUT", 8000), ("POST", 49983), ("POST", 50005)])
async def test_a_connection_is_kept_for_the_next_request(
    pod: Pod, client: httpx.AsyncClient, method: str, port: int
) -> None:
    service = Counting()
    assert pod.address
    async with talking(service, pod.address, port):
        for _ in range(5):
            assert await ask(client, pod, method, port) == 200
    assert service.connections == 1


async def test_a_post_to_a_port_of_the_users_gets_a_connection_of_its_own(pod: Pod, client: httpx.AsyncClient) -> None:
    service = Counting()
    assert pod.address
    async with talking(service, pod.address, 8000):
        for method in ("GET", "POST", "POST"):
            assert await ask(client, pod, method, 8000) == 200
    assert service.connections == 3


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_an_idempotent_request_on_a_stale_connection_is_sent_once_more(
    pod: Pod, client: httpx.AsyncClient, method: str
) -> None:
    service = Counting(hangs_up_on_second=True)
    assert pod.address
    async with talking(service, pod.address, 8000):
        assert [await ask(client, pod, method, 8000) for _ in range(3)] == [200, 200, 200]
    assert service.connections == 3
    assert len(service.requests) == 5


async def test_a_post_on_a_stale_connection_is_not_sent_twice(pod: Pod, client: httpx.AsyncClient) -> None:
    service = Counting(hangs_up_on_second=True)
    assert pod.address
    async with talking(service, pod.address, 50005):
        assert [await ask(client, pod, "POST", 50005) for _ in range(2)] == [200, 502]
    assert service.requests == [b"POST", b"POST"]


async def test_a_request_on_a_fresh_connection_is_not_sent_twice(pod: Pod, client: httpx.AsyncClient) -> None:
    service = Counting(b"")

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        service.requests.append(await reader.readuntil(b"\r\n\r\n"))

    assert pod.address
    async with talking(hang_up, pod.address, 8000):
        assert await ask(client, pod, "GET", 8000) == 502
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
    ],
    ids=["close", "1.0", "surplus"],
)
async def test_a_connection_that_cannot_be_trusted_is_not_kept(
    pod: Pod, client: httpx.AsyncClient, reply: bytes
) -> None:
    service = Counting(reply)
    assert pod.address
    async with talking(service, pod.address, 8000):
        for _ in range(3):
            response = await client.get("/", headers=to(pod, 8000))
            assert response.text == "ok"
    assert service.connections == 3


async def answered(pool: Pool, route: Route) -> Connection:
    """A new connection over which a request has been answered."""
    connection = await pool.connect(route)
    connection.start(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", is_head_request=False)
    assert (await connection.head()).status == 200
    assert await connection.read() == (b"ok", False)
    return connection


async def test_bytes_that_nobody_asked_for_end_the_connection(pod: Pod) -> None:
    """A pod must not be able to place an answer for the next request, which may be another client's."""
    forge, ended = asyncio.Event(), asyncio.Event()

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await forge.wait()
        try:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
            await writer.drain()
            await reader.read()
        finally:
            ended.set()

    assert pod.address
    route = Route(pod, pod.address, 8000, b"/")
    pool = Pool(Dialler(), idle_s=2 * BOUND_S)  # nothing else ends it meanwhile
    async with talking(conversation, pod.address, 8000):
        pool.give_back(key_of(route), await answered(pool, route))
        forge.set()
        async with asyncio.timeout(BOUND_S):
            await ended.wait()
        assert pool.take(key_of(route)) is None
    pool.close()


async def test_a_dropped_sandbox_leaves_no_connection_behind(front: Front, pod: Pod, client: httpx.AsyncClient) -> None:
    service = Counting()
    assert pod.address
    async with talking(service, pod.address, 8000):
        assert await ask(client, pod, "GET", 8000) == 200
        assert service.closed == 0
        front.drop(pod.sandbox_id)
        await until(lambda: service.closed == 1)


async def test_a_connection_that_stays_idle_is_closed(pod: Pod) -> None:
    service = Counting()
    assert pod.address
    route = Route(pod, pod.address, 8000, b"/")
    key = key_of(route)
    pool = Pool(Dialler(), idle_s=0.01)
    async with talking(service, pod.address, 8000):
        connection = await answered(pool, route)
        pool.give_back(key, connection)
        assert pool.take(key) is connection
        pool.give_back(key, connection)
        await until(lambda: service.closed == 1)
        assert pool.take(key) is None


async def test_requests_sent_ahead_are_answered_in_order(front: Front, pod: Pod) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + head[4:6])

    assert pod.address
    async with talking(conversation, pod.address, 8000):
        reader, writer = await asyncio.open_connection(front.server.host, front.server.port)
        names = "".join(f"{name}: {value}\r\n" for name, value in to(pod, 8000).items())
        writer.write("".join(f"GET /{n} HTTP/1.1\r\nHost: x\r\n{names}\r\n" for n in range(3)).encode())
        async with asyncio.timeout(BOUND_S):
            for n in range(3):
                await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(2) == f"/{n}".encode()
        writer.close()
        await writer.wait_closed()
