"""A killed sandbox: its streams break at once. E2B's SDKs tell a kill by a broken stream and a 502 right after."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.edge.conftest import Front, to
from tests.edge.serving import with_lifespan
from tests.waiting import BOUND_S, until


@with_lifespan
async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """One event, then silence until the client is gone."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


class Silent:
    """Takes a request and never answers it."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass


async def test_an_open_stream_breaks_and_the_sandbox_is_not_found(front: Front, client: httpx.AsyncClient) -> None:
    pod = front.sandbox(endless)
    async with client.stream("POST", "/process.Process/Start", headers=to(pod)) as response:
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"first"
        front.drop(pod.sandbox_id)
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(pieces)
    response = await client.get("/health", headers=to(pod))
    assert response.status_code == 502
    assert "was not found" in response.json()["message"]


async def test_streams_of_other_sandboxes_go_on(front: Front, client: httpx.AsyncClient) -> None:
    killed, other = front.sandbox(endless), front.sandbox(endless)
    async with client.stream("GET", "/", headers=to(other)) as response:
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"first"
        front.drop(killed.sandbox_id)
        assert (await client.get("/", headers=to(killed))).status_code == 502
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await anext(pieces)


async def test_a_request_without_an_answer_yet_is_answered_not_found(front: Front, client: httpx.AsyncClient) -> None:
    silent = Silent()
    pod = front.sandbox(with_lifespan(silent))
    request = asyncio.create_task(client.get("/", headers=to(pod)))
    await until(silent.begun.is_set)
    front.drop(pod.sandbox_id)
    response = await request
    assert response.status_code == 502
    assert response.json() == {"sandboxId": pod.sandbox_id, "message": "The sandbox was not found", "code": 502}


async def test_a_client_that_does_not_read_is_dropped_too(front: Front) -> None:
    gone = threading.Event()

    @with_lifespan
    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with asyncio.TaskGroup() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                gone.set()

            watching = group.create_task(watch())
            while not watching.done():
                await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})

    pod = front.sandbox(flood)
    reader, writer = await asyncio.open_connection(front.server.host, front.server.port, limit=1024)
    names = "".join(f"{name}: {value}\r\n" for name, value in to(pod).items())
    writer.write(f"GET / HTTP/1.1\r\nHost: x\r\n{names}\r\n".encode())
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    front.drop(pod.sandbox_id)
    await until(gone.is_set)
    async with asyncio.timeout(BOUND_S):
        rest = await reader.read()
    assert not rest.endswith(b"0\r\n\r\n")
    writer.close()
    await writer.wait_closed()


async def test_an_open_websocket_is_closed(front: Front) -> None:
    pod = front.sandbox(endless, port=8000)
    url = front.url.replace("http", "ws")
    async with connect(url, additional_headers=to(pod, 8000), proxy=None) as client:
        front.drop(pod.sandbox_id)
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "The sandbox was not found")


async def test_dropping_again_or_what_is_unknown_is_silent(front: Front, client: httpx.AsyncClient) -> None:
    pod = front.sandbox(endless)
    front.drop(pod.sandbox_id)
    for sandbox_id in (pod.sandbox_id, "iunknown"):
        front.loop.call_soon_threadsafe(front.edge.drop, sandbox_id)
    assert (await client.get("/v2")).status_code == 200


async def test_a_control_plane_that_stops_breaks_every_stream(front: Front, client: httpx.AsyncClient) -> None:
    silent = Silent()
    one, other = front.sandbox(endless), front.sandbox(with_lifespan(silent))
    request = asyncio.create_task(client.get("/", headers=to(other)))
    await until(silent.begun.is_set)
    async with client.stream("GET", "/", headers=to(one)) as response:
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"first"
        front.loop.call_soon_threadsafe(front.edge.close_streams)
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(pieces)
    assert (await request).status_code == 503
