"""Long and large streams: nothing is held back, memory stays flat, and a stream that breaks is seen to break."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import AsyncIterator

import httpx
import psutil
import pytest
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect

from tests.edge.applications import Echo
from tests.edge.conftest import Front, to
from tests.edge.serving import Pod, answer, new_address, talking, with_lifespan
from tests.waiting import BOUND_S, settled, until

MIB = 1024 * 1024
PIECE = bytes(range(256)) * 256  # 64 KiB


def memory() -> int:
    return int(psutil.Process().memory_info().rss)


async def test_a_gib_goes_up_and_down_with_flat_memory(front: Front, client: httpx.AsyncClient) -> None:
    size = 1024 * MIB

    @with_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "PUT":
            received, more = 0, True
            while more:
                message = await receive()
                received += len(message.get("body", b""))
                more = message.get("more_body", False)
            await answer(send, b"%d" % received)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        for _ in range(size // len(PIECE)):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(size // len(PIECE)):
            yield PIECE

    pod = front.sandbox(app, port=8000)
    headers = to(pod, 8000)
    assert (await client.put("/", headers=headers, content=PIECE)).text == str(len(PIECE))
    before = memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (await client.put("/", headers=headers, content=upload())).text == str(size)
    received = 0
    async with client.stream("GET", "/", headers=headers) as response:
        async for piece in response.aiter_raw():
            received += len(piece)
    assert received == size
    # Client, edge and pod share this process, so this bounds all three.
    assert memory() - before < 64 * MIB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 * 1024


async def test_a_client_that_does_not_read_stops_the_pod(front: Front) -> None:
    sent = 0

    @with_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while sent < 1024 * MIB:
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            sent += len(PIECE)

    pod = front.sandbox(app, port=8000)
    reader, writer = await asyncio.open_connection(front.server.host, front.server.port, limit=1024)
    names = "".join(f"{name}: {value}\r\n" for name, value in to(pod, 8000).items())
    writer.write(f"GET / HTTP/1.1\r\nHost: x\r\n{names}\r\n".encode())
    await until(lambda: sent > 0)
    held = await settled(lambda: sent)
    assert held < 64 * MIB
    while sent == held:  # reading lets it go on
        assert await reader.read(MIB)
    writer.close()
    await writer.wait_closed()


async def test_a_pod_that_does_not_read_stops_the_client(front: Front) -> None:
    release = asyncio.Event()
    received = 0

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        await reader.readuntil(b"\r\n\r\n")
        await release.wait()
        while piece := await reader.read(MIB):
            received += len(piece)
            if received >= 512 * MIB:
                break
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    pod = front.pods.add(Pod("islow", new_address()))
    assert pod.address
    sent = 0

    async def upload() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 512 * MIB:
            yield PIECE
            sent += len(PIECE)

    async with talking(conversation, pod.address, 8000), httpx.AsyncClient(timeout=60) as client:
        headers = to(pod, 8000) | {"Content-Length": str(512 * MIB)}
        request = asyncio.create_task(client.put(front.url, headers=headers, content=upload()))
        await until(lambda: sent > 0)
        assert await settled(lambda: sent) < 64 * MIB
        release.set()
        assert (await request).status_code == 200
    assert received == 512 * MIB


async def test_events_arrive_one_by_one(front: Front, client: httpx.AsyncClient) -> None:
    go_on = threading.Semaphore(0)

    @with_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(5):
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
            await asyncio.to_thread(go_on.acquire)
        await send({"type": "http.response.body", "body": b""})

    pod = front.sandbox(app, port=50005)
    async with client.stream("GET", f"/sandboxes/{pod.sandbox_id}/mcp") as response:
        events = response.aiter_raw()
        for number in range(5):
            assert await anext(events) == b"data: %d\n\n" % number
            go_on.release()  # the next event is sent only now
        assert [rest async for rest in events] == []


async def test_streams_may_be_silent(front: Front, client: httpx.AsyncClient) -> None:
    """For longer than any time-out of a connection that is idle, being opened or being closed."""
    go_on = threading.Event()

    @with_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await asyncio.to_thread(go_on.wait, 60)
        await send({"type": "http.response.body", "body": b"last"})

    pod = front.sandbox(app, port=8000)
    front.serve(pod, Echo(), port=8888)
    async with (
        client.stream("GET", "/", headers=to(pod, 8000), timeout=None) as response,
        connect(front.ws(), additional_headers=to(pod, 8888), proxy=None, ping_interval=None) as websocket,
    ):
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"first"
        await asyncio.sleep(6.5)
        go_on.set()
        assert await anext(pieces) == b"last"
        await websocket.send("still here")
        assert await websocket.recv() == "still here"


async def test_both_directions_flow_at_once(front: Front) -> None:
    """An answer that begins before the request's body ends, piece for piece in turn."""

    @with_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ready", "more_body": True})
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message.get("body", b"").upper(), "more_body": more})

    pod = front.sandbox(app, port=8000)
    reader, writer = await asyncio.open_connection(front.server.host, front.server.port)
    names = "".join(f"{name}: {value}\r\n" for name, value in to(pod, 8000).items())
    async with asyncio.timeout(BOUND_S):
        writer.write(f"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n{names}\r\n".encode())
        await reader.readuntil(b"ready\r\n")
        for piece in (b"one", b"two", b"three"):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await reader.readuntil(piece.upper())
        writer.write(b"0\r\n\r\n")
        await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("after_head", [False, True])
async def test_a_client_that_hangs_up_is_felt_by_the_pod_at_once(front: Front, after_head: bool) -> None:
    begun, gone = threading.Event(), threading.Event()

    @with_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if after_head:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        begun.set()
        message = await receive()
        assert message["type"] == "http.disconnect"
        gone.set()

    pod = front.sandbox(app, port=50005)
    async with httpx.AsyncClient(timeout=20) as client:
        request = asyncio.create_task(client.post(f"{front.url}/sandboxes/{pod.sandbox_id}/mcp", json={}))
        await until(begun.is_set)
        assert not gone.is_set()
        request.cancel()
        await asyncio.wait([request])
    await until(gone.is_set)


async def test_a_client_that_hangs_up_in_the_middle_of_an_upload_is_felt_by_the_pod(front: Front) -> None:
    outcome: list[object] = []

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(10)
        outcome.append("begun")
        try:
            outcome.append(await reader.read())
        except ConnectionError:
            outcome.append(b"")

    pod = front.pods.add(Pod("iupload", new_address()))
    assert pod.address
    async with talking(conversation, pod.address, 8000):
        _, writer = await asyncio.open_connection(front.server.host, front.server.port)
        names = "".join(f"{name}: {value}\r\n" for name, value in to(pod, 8000).items())
        writer.write(f"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n{names}\r\n0123456789".encode())
        await until(lambda: outcome)
        writer.close()
        await writer.wait_closed()
        await until(lambda: len(outcome) == 2)
    assert outcome == ["begun", b""]


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b"half"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"4\r\nhalf\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"4\r\nhalf\r\nno chunk size\r\n"),
    ],
    ids=["length", "chunks", "not a chunk"],
)
async def test_a_pod_that_breaks_off_breaks_the_clients_stream(
    front: Front, client: httpx.AsyncClient, head: bytes, body: bytes
) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + body)

    pod = front.pods.add(Pod("ibreaks", new_address()))
    assert pod.address
    async with talking(conversation, pod.address, 8000):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/", headers=to(pod, 8000))


async def test_an_answer_that_comes_before_the_body_was_read_is_passed_on(front: Front) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await writer.drain()
        await reader.read()

    pod = front.pods.add(Pod("ismall", new_address()))
    assert pod.address
    async with talking(conversation, pod.address, 8000):
        reader, writer = await asyncio.open_connection(front.server.host, front.server.port)
        names = "".join(f"{name}: {value}\r\n" for name, value in to(pod, 8000).items())
        writer.write(f"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n{names}\r\nx".encode())
        async with asyncio.timeout(BOUND_S):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413")
            await reader.readuntil(b"big")
        writer.close()
        await writer.wait_closed()
