"""The little of HTTP that the gateway's two ASGI surfaces need. Knows nothing of MCP."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import orjson

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class HttpError(Exception):
    """Ends a request with this status and a text for a person."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete."""


class Headers(dict[str, str]):
    """Request headers by lower-case name, without the blanks httptools leaves around values; the last one wins."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        super().__init__()
        duplicated = set()
        for name, value in raw:
            key = name.decode("latin-1")
            if key in self:
                duplicated.add(key)
            self[key] = value.strip(b" \t").decode("latin-1")
        self.duplicated = frozenset(duplicated)


DISCARD_FACTOR = 4
"""How many times the limit is read and thrown away, because most clients read no answer before they have sent all."""


async def read_body(receive: Receive, headers: Headers, limit: int) -> bytes:
    """Raises: HttpError 413 beyond `limit` bytes, ClientGoneError."""
    too_large = HttpError(413, f"The body is larger than {limit} bytes.", {"Connection": "close"})
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit * DISCARD_FACTOR:
        raise too_large
    parts: list[bytes] = []
    held = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientGoneError
        part = event.get("body", b"")
        held += len(part)
        if held <= limit:
            parts.append(part)
        elif held > limit * DISCARD_FACTOR or not event.get("more_body"):
            raise too_large
        else:
            parts.clear()
        if not event.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def respond(
    send: Send,
    status: int,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    content_type: bytes = b"application/json",
) -> None:
    lines = [(b"content-length", b"%d" % len(body))]
    if body:
        lines.append((b"content-type", content_type))
    for name, value in (headers or {}).items():
        lines.append((name.lower().encode(), value.encode()))
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


async def respond_json(send: Send, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
    await respond(send, status, orjson.dumps(value), headers)


async def respond_error(send: Send, error: HttpError) -> None:
    await respond(send, error.status, orjson.dumps({"error": error.message}), error.headers)
