"""What one client or one sandbox may take of the edge."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from app.edge.edge import OPEN_LIMIT
from app.edge.http_protocol import HEAD_LIMIT
from tests.edge.applications import mirror
from tests.edge.conftest import Front, to
from tests.edge.serving import answer, with_lifespan
from tests.waiting import BOUND_S, until

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def exchange(front: Front, request: bytes) -> bytes:
    """Everything that comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection(front.server.host, front.server.port)
    writer.write(request)
    try:
        async with asyncio.timeout(BOUND_S):
            return await reader.read()
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    "start",
    [HEAD + b"X: ", HEAD + b"X: y\r\n" * 1000, b"GET /", HEAD, b""],
    ids=["value", "headers", "path", "name", "method"],
)
async def test_a_head_without_end_is_refused(front: Front, start: bytes) -> None:
    request = start + b"A" * (HEAD_LIMIT + 1 - len(start))
    assert (await exchange(front, request)).startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))


async def test_a_long_head_is_refused_with_431_and_one_within_the_limit_passes(
    front: Front, client: httpx.AsyncClient
) -> None:
    refused = await exchange(front, HEAD + b"X: " + b"A" * HEAD_LIMIT)
    assert refused.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert refused.endswith(b'{"code":431,"message":"The head of the request is too long"}')
    pod = front.sandbox(mirror, port=8000)
    value = "A" * (HEAD_LIMIT - 4096)
    seen = (await client.get("/", headers=to(pod, 8000) | {"X-Long": value})).json()
    assert ["x-long", value] in seen["headers"]


async def test_a_long_head_on_a_kept_connection_is_refused(front: Front) -> None:
    reader, writer = await asyncio.open_connection(front.server.host, front.server.port)
    async with asyncio.timeout(BOUND_S):
        writer.write(HEAD + b"\r\n")
        assert (await reader.readuntil(b"api /")).startswith(b"HTTP/1.1 200 ")
        writer.write(HEAD + b"X: " + b"A" * HEAD_LIMIT)
        assert b"HTTP/1.1 431 " in await reader.read()
    writer.transport.abort()


async def test_a_body_does_not_count_as_head(front: Front, client: httpx.AsyncClient) -> None:
    pod = front.sandbox(mirror, port=8000)
    body = b"x" * (HEAD_LIMIT * 4)
    for content in (body, b"".join(b"%d," % number for number in range(50_000))):
        assert len((await client.post("/", headers=to(pod, 8000), content=content)).json()["body"]) == len(content)


async def test_trailers_of_a_request_are_no_headers(front: Front) -> None:
    """Not for the service, and not for routing: what stands in front of the edge has not seen them."""
    pod, other = front.sandbox(mirror, port=8000), front.sandbox(mirror, port=8001)
    lines = "".join(f"{name}: {value}\r\n" for name, value in to(pod, 8000).items()).encode()
    trailers = "".join(f"{name}: {value}\r\n" for name, value in to(other, 8001).items()).encode()
    request = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n" + lines
    reply = await exchange(front, request + b"\r\n2\r\nok\r\n0\r\nX-Trailer: 1\r\n" + trailers + b"\r\n")
    assert b'"body": "ok"' in reply
    assert b"x-trailer" not in reply


async def test_trailers_without_end_break_the_connection(front: Front) -> None:
    pod = front.sandbox(mirror, port=8000)
    lines = "".join(f"{name}: {value}\r\n" for name, value in to(pod, 8000).items()).encode()
    request = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + lines + b"\r\n2\r\nok\r\n0\r\nX: "
    with suppress(ConnectionError):  # which of the two depends on what the server had read
        assert await exchange(front, request + b"A" * 1024 * 1024) == b""


async def test_a_service_that_finds_a_body_too_large_is_heard(front: Front, client: httpx.AsyncClient) -> None:
    @with_lifespan
    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"too large", status=413)

    pod = front.sandbox(refusing, port=8000)
    response = await client.post("/", headers=to(pod, 8000), content=b"x" * 100_000)
    assert (response.status_code, response.text) == (413, "too large")


async def test_a_sandbox_with_too_many_open_requests_gets_no_more_of_them(
    front: Front, client: httpx.AsyncClient
) -> None:
    held = 0
    lock = threading.Lock()

    @with_lifespan
    async def holding(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal held
        if scope["path"] == "/now":
            await answer(send, b"now")
            return
        with lock:
            held += 1
        while (await receive())["type"] != "http.disconnect":
            pass
        with lock:
            held -= 1

    pod, other = front.sandbox(holding, port=8000), front.sandbox(mirror, port=8000)
    lines = "".join(f"{name}: {value}\r\n" for name, value in to(pod, 8000).items()).encode()
    writers = []
    for _ in range(OPEN_LIMIT):
        _, writer = await asyncio.open_connection(front.server.host, front.server.port)
        writer.write(HEAD + lines + b"\r\n")
        writers.append(writer)
    await until(lambda: held == OPEN_LIMIT)
    refused = await client.get("/now", headers=to(pod, 8000))
    assert refused.status_code == 429
    text = f"The sandbox has too many concurrent incoming connections (limit: {OPEN_LIMIT})"
    assert refused.json() == {"sandboxId": pod.sandbox_id, "message": text, "code": 429}
    assert (await client.get("/", headers=to(other, 8000))).status_code == 200
    for writer in writers:
        writer.transport.abort()
    await until(lambda: held == 0)
    assert (await client.get("/now", headers=to(pod, 8000))).text == "now"
