"""HTTP servers that a gateway can't use, each for one named reason."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Misfit:
    """How it answers POST and GET, and what a person must be told."""

    post: bytes
    get: bytes
    message: str


def _answer(status: str, content_type: str = "text/plain", body: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


_ENDPOINT = b"event: endpoint\ndata: /messages?session=1\n\n"
_ELSEWHERE = b"event: endpoint\ndata: http://localhost:1/messages\n\n"

MISFITS = {
    "wants other credentials": Misfit(
        _answer("401 Unauthorized"), _answer("401 Unauthorized"), "refuses the configured"
    ),
    "is no MCP endpoint": Misfit(_answer("404 Not Found"), _answer("404 Not Found"), "must be the one of a streamable"),
    "speaks the old transport without taking messages": Misfit(
        _answer("405 Method Not Allowed"),
        _answer("200 OK", "text/event-stream", _ENDPOINT),
        "closed its event stream",
    ),
    "has its endpoint elsewhere": Misfit(
        _answer("404 Not Found"), _answer("200 OK", "text/event-stream", _ELSEWHERE), "an endpoint at another host"
    ),
    "answers with a page": Misfit(
        _answer("200 OK", "text/html", b"<html>"), _answer("200 OK", "text/html", b"<html>"), "not JSON-RPC"
    ),
    "moved": Misfit(_answer("308 Permanent Redirect"), _answer("404 Not Found"), "answered with HTTP status 308"),
}


@asynccontextmanager
async def misfit_over_http(name: str) -> AsyncIterator[str]:
    """Yields its address."""
    misfit = MISFITS[name]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length")), 0)
                await reader.readexactly(length)
                writer.write(misfit.post if head.startswith(b"POST") else misfit.get)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
