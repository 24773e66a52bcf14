"""A remote server that tells of changes on a stream, for as long as a test lets it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from tests.gateway.loopback import served
from tests.gateway.stalling_server import Message
from tests.waiting import until

QUICKLY = b"retry: 10\n\n"
"""How soon a stream that ended may be opened again, in milliseconds."""


class ListeningServer:
    """Streamable HTTP in one era, without anything to offer."""

    def __init__(self, era: str) -> None:
        self.url = ""
        self.refusal: int | None = None
        """The HTTP status with which whoever asks for the stream gets a page instead."""
        self.asked = 0
        """How often somebody did."""
        self.streams: list[web.StreamResponse] = []
        """Those open now, the oldest first."""
        self.holds = False
        """Whether it leaves whoever asks hanging, for as long as that is so."""
        self._era = era
        self._end = asyncio.Event()

    def end_streams(self) -> None:
        self._end.set()
        self._end = asyncio.Event()

    async def tell(self, method: str) -> None:
        """To whoever listens."""
        for stream in self.streams:
            await stream.write(_event({"method": method}))

    async def take(self, request: web.Request) -> web.StreamResponse:
        message = await request.json()
        if "id" not in message:
            return web.Response(status=202)
        if message["method"] == "subscriptions/listen" and self._era == "modern":
            return await self.stream(request, {"method": "notifications/subscriptions/acknowledged", "params": {}})
        answer = {"jsonrpc": "2.0", "id": message["id"], **self._answer(message["method"])}
        return web.json_response(answer, headers={"Mcp-Session-Id": "one"} if self._era == "legacy" else None)

    async def listen(self, request: web.Request) -> web.StreamResponse:
        return await self.stream(request)

    async def stream(self, request: web.Request, *first: Message) -> web.StreamResponse:
        self.asked += 1
        if self.refusal is not None:
            return web.Response(status=self.refusal, text="We are back soon.")
        end = self._end
        await until(lambda: not self.holds)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        self.streams.append(stream)
        try:
            await stream.write(QUICKLY + b"".join(map(_event, first)))
            await end.wait()
        finally:
            self.streams.remove(stream)
        return stream

    def _answer(self, method: str) -> Message:
        if method == "server/discover" and self._era == "modern":
            return {"result": {"supportedVersions": ["2026-07-28"], "capabilities": {}}}
        if method == "initialize" and self._era == "legacy":
            info = {"name": "listening", "version": "1"}
            return {"result": {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": info}}
        return {"error": {"code": -32601, "message": "Method not found"}}


def _event(message: Message) -> bytes:
    return b"data: " + json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n\n"


@asynccontextmanager
async def listening_server(era: str) -> AsyncIterator[ListeningServer]:
    """Yields a server that listens on the loopback interface."""
    server = ListeningServer(era)
    app = web.Application()
    app.router.add_post("/mcp", server.take)
    app.router.add_get("/mcp", server.listen)
    async with served(app) as url:
        server.url = f"{url}/mcp"
        try:
            yield server
        finally:
            server.end_streams()
