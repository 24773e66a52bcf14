"""A remote server that holds back what a test wants it to, and says what the test gives it to say."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.gateway.loopback import served

Message = dict[str, Any]


def holds_nothing(message: Message) -> bool:
    return False


class StallingServer:
    """Streamable HTTP with one tool, `talk`, in one era. Everything it is sent is in `received`."""

    def __init__(self, era: str) -> None:
        self.url = ""
        self.received: list[Message] = []
        self.holds: Callable[[Message], bool] = holds_nothing
        """Which messages it leaves hanging, until `let_go`."""
        self.held = 0
        """Messages that hang at the moment."""
        self.says: list[Message] = []
        """What each call brings on its stream before its answer."""
        self._era = era
        self._gate = asyncio.Event()

    def let_go(self) -> None:
        self.holds = holds_nothing
        self._gate.set()
        self._gate = asyncio.Event()

    def count(self, method: str) -> int:
        return sum(message.get("method") == method for message in self.received)

    def answers(self) -> dict[object, Message]:
        """Those of the gateway to what the server asked, by id."""
        return {message["id"]: message for message in self.received if "method" not in message}

    async def take(self, request: web.Request) -> web.StreamResponse:
        message = await request.json()
        self.received.append(message)
        if self.holds(message):
            self.held += 1
            try:
                await self._gate.wait()
            finally:
                self.held -= 1
        if "id" not in message or "method" not in message:
            return web.Response(status=202)
        answer = {"jsonrpc": "2.0", "id": message["id"], **self._answer(message["method"])}
        if message["method"] != "tools/call":
            return web.json_response(answer)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        said = [{"jsonrpc": "2.0", **words} for words in self.says]
        await stream.write(b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in [*said, answer]))
        return stream

    def _answer(self, method: str) -> Message:
        is_modern = self._era == "modern"
        match method:
            case "server/discover" if is_modern:
                return {"result": {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}}
            case "initialize" if not is_modern:
                info = {"name": "stalling", "version": "1"}
                value = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}
                return {"result": value}
            case "tools/list":
                return {"result": {"tools": [{"name": "talk", "inputSchema": {"type": "object"}}]}}
            case "tools/call":
                return {"result": {"content": [{"type": "text", "text": "that was all"}]}}
            case _:
                return {"error": {"code": -32601, "message": "Method not found"}}


@asynccontextmanager
async def stalling_server(era: str = "legacy") -> AsyncIterator[StallingServer]:
    """Yields a server that listens on the loopback interface."""
    server = StallingServer(era)
    app = web.Application()
    app.router.add_post("/mcp", server.take)
    async with served(app) as url:
        server.url = f"{url}/mcp"
        try:
            yield server
        finally:
            server.let_go()
