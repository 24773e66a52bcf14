"""A server that speaks HTTP+SSE, the transport of 2024-11-05, and does what a test wants with its sessions."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

TOOL = {"name": "ping_pong", "description": "Answers pong.", "inputSchema": {"type": "object"}}


class SseServer:
    """One tool, `ping_pong`. Everything it is sent is in `received`, with the headers in `headers`."""

    def __init__(self) -> None:
        self.url = ""
        self.received: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        self.sessions = 0
        self.hanging = False
        """Whether calls are left unanswered."""
        self.untaken = ""
        """A method whose messages are read and not even accepted, until the server ends."""
        self._ended = asyncio.Event()
        self._streams: dict[str, asyncio.Queue[bytes | None]] = {}

    def forget_sessions(self) -> None:
        """Messages are answered with 404; the streams stay open."""
        self._streams = {f"forgotten-{name}": queue for name, queue in self._streams.items()}

    def end(self) -> None:
        self._ended.set()
        self.drop_streams()

    def drop_streams(self) -> None:
        for queue in self._streams.values():
            queue.put_nowait(None)
        self._streams.clear()

    def initialized(self) -> int:
        return sum(message.get("method") == "initialize" for message in self.received)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        self.sessions += 1
        name = f"s{self.sessions}"
        queue = self._streams[name] = asyncio.Queue()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f": hello\n\nevent: endpoint\ndata: messages?session={name}\n\n".encode())
        while (data := await queue.get()) is not None:
            await response.write(b"event: message\ndata: " + data + b"\n\n")
        return response

    async def message(self, request: web.Request) -> web.Response:
        queue = self._streams.get(request.query["session"])
        if queue is None:
            return web.Response(status=404, text="Could not find session")
        message = await request.json()
        self.received.append(message)
        self.headers.append(request.headers.get("Authorization"))
        if message.get("method") == self.untaken:
            await self._ended.wait()
        if "id" in message and "method" in message and not (self.hanging and message["method"] == "tools/call"):
            answer = {"jsonrpc": "2.0", "id": message["id"], **self._answer(message["method"])}
            queue.put_nowait(json.dumps(answer).encode())
        return web.Response(status=202, text="Accepted")

    def _answer(self, method: str) -> dict[str, Any]:
        match method:
            case "initialize":
                info = {"name": "old", "version": "1"}
                value = {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}}, "serverInfo": info}
                return {"result": value}
            case "tools/list":
                return {"result": {"tools": [TOOL]}}
            case "tools/call":
                return {"result": {"content": [{"type": "text", "text": f"pong of session {self.sessions}"}]}}
            case _:
                return {"error": {"code": -32601, "message": "Method not found"}}


@asynccontextmanager
async def sse_server() -> AsyncIterator[SseServer]:
    """Yields a server that listens on the loopback interface."""
    server = SseServer()
    app = web.Application()
    app.router.add_get("/sse", server.stream)
    app.router.add_post("/messages", server.message)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/sse"
        yield server
    finally:
        server.end()
        await runner.cleanup()
