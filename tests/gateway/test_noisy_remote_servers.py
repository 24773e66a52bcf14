"""Remote servers that never stop talking."""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from aiohttp import web
from sandgate_gateway.allowance import MESSAGE_COST, RATE

from tests.gateway.loopback import served
from tests.gateway.running_gateway import RunningGateway, echo
from tests.gateway.wire import LegacyWire

MESSAGES = 100
NOISE = b'event: message\ndata: {"jsonrpc":"2.0","method":"notifications/message","params":{}}\n\n' * MESSAGES
INITIALIZED = {
    "protocolVersion": "2025-03-26",
    "capabilities": {},
    "serverInfo": {"name": "noisy", "version": "1"},
}


async def talk(request: web.Request) -> web.StreamResponse:
    """Notifications for as long as somebody reads them, on an event stream of either transport."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    if request.path == "/sse":
        request.app[STREAM].append(response)
        await response.write(b"event: endpoint\ndata: /sse\n\n")
        await request.app[INTRODUCED].wait()
    while True:
        await response.write(NOISE)
        request.app[SAID].append(MESSAGES)


async def take(request: web.Request) -> web.Response:
    message = await request.json()
    if message.get("method") != "initialize":
        request.app[INTRODUCED].set()
        return web.Response(status=202)
    answer = {"jsonrpc": "2.0", "id": message["id"], "result": INITIALIZED}
    if request.path == "/mcp":
        return web.json_response(answer, headers={"Mcp-Session-Id": "one"})
    (stream,) = request.app[STREAM]
    await stream.write(b"event: message\ndata: " + json.dumps(answer).encode() + b"\n\n")
    return web.Response(status=202)


STREAM: web.AppKey[list[web.StreamResponse]] = web.AppKey("stream")
SAID: web.AppKey[list[int]] = web.AppKey("said")
INTRODUCED: web.AppKey[asyncio.Event] = web.AppKey("introduced")


@asynccontextmanager
async def noisy_server() -> AsyncIterator[tuple[str, list[int]]]:
    """Yields its address, without a path: `/mcp` is streamable HTTP, `/sse` is HTTP+SSE. And how much it has said."""
    app = web.Application()
    app[STREAM], app[INTRODUCED], app[SAID] = [], asyncio.Event(), []
    for path in ("/mcp", "/sse"):
        app.router.add_get(path, talk)
        app.router.add_post(path, take)
    async with served(app) as url:
        yield url, app[SAID]


@pytest.mark.parametrize(("kind", "path"), [("http", "/mcp"), ("sse", "/sse")])
async def test_a_remote_server_that_never_stops_is_listened_to_at_a_bounded_rate(
    gateway: RunningGateway, kind: str, path: str
) -> None:
    async with noisy_server() as (url, said), httpx.AsyncClient(timeout=30) as http:
        noisy = {"type": kind, "url": url + path, "headers": {}, "allowPrivate": True}
        status = await asyncio.to_thread(gateway.configure, {"noisy": noisy, "echo": echo()})
        assert [server["state"] for server in status.values()] == ["ready", "ready"]
        session = await LegacyWire(http, gateway.url).open()
        rates = []
        for _ in range(12):
            before, began = sum(said), time.monotonic()
            while time.monotonic() - began < 0.5:
                assert "hello" in str(await session.call("echo", {"text": "hello"}))
                await asyncio.sleep(0.02)
            rates.append((sum(said) - before) / (time.monotonic() - began))
        # First the allowance is spent and the buffers between the two are filled; what comes later counts.
        assert statistics.median(rates[4:]) < 2 * RATE / MESSAGE_COST, rates
        await asyncio.to_thread(gateway.put_config, {})
