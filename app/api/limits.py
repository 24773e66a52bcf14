"""Bounds the size of request bodies before anything parses them."""

from __future__ import annotations

import re

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.catalog.documents import MAX_DOCUMENT_BYTES

MAX_BODY_BYTES = 1024 * 1024
_STREAMED = re.compile(r"/volumecontent/[^/]+/file|/templates/.+/files/[^/]+")
"""Paths whose bodies are passed on as they come and may have any size."""
LARGER_BODIES = {"/api/v1/catalog/imports": MAX_DOCUMENT_BYTES}
"""Paths that take more."""


class BodyLimit:
    """ASGI middleware: answers 413 to a body over the limit of its path, whether its length was announced or not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _STREAMED.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        limit = LARGER_BODIES.get(scope["path"], MAX_BODY_BYTES)
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if announced.isdigit() and int(announced) > limit:
            await _refuse(send, limit)
            return
        # A body of unknown length is read whole here: it is small, or refused before the application sees any of it.
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            size += len(message.get("body", b""))
            if size > limit:
                await _refuse(send, limit)
                return
            chunks.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        body = b"".join(chunks)
        handed_over = False

        async def receive_read() -> Message:
            nonlocal handed_over
            if handed_over:
                return await receive()
            handed_over = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_read, send)


async def _refuse(send: Send, limit: int) -> None:
    body = orjson.dumps({"code": 413, "message": f"The body is larger than {limit // 1024} KiB."})
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
