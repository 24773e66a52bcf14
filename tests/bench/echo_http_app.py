"""The echo server over Streamable HTTP, as a bare ASGI application: legacy era, no sessions, plain JSON answers.

Cheap enough not to be the limit of anything that is put in front of it, which the rows of direct calls show.
"""

from __future__ import annotations

import json

from starlette.types import Receive, Scope, Send

from tests.bench.echo_server import answer

_ERA = "legacy"
_JSON = (b"content-type", b"application/json")


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Posts are answered; there is no stream to listen to (405), and nothing to end, which is fine (200)."""
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    status, content = (405 if scope["method"] == "GET" else 200), b""
    if scope["method"] == "POST":
        message = json.loads(body)
        status = 200 if "id" in message else 202
        if status == 200:
            reply = {"jsonrpc": "2.0", "id": message["id"], **answer(message, _ERA)}
            content = json.dumps(reply, separators=(",", ":")).encode()
    length = (b"content-length", str(len(content)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, _JSON] if content else [length]})
    await send({"type": "http.response.body", "body": content})
