"""What pods serve in the edge's tests: one application tells what it got, another one echoes WebSocket messages."""

from __future__ import annotations

import json

from starlette.types import Receive, Scope, Send

from tests.edge.serving import answer, read_body, with_lifespan


@with_lifespan
async def mirror(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it got."""
    body = await read_body(receive)
    seen = {
        "method": scope["method"],
        "target": (scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")).decode(),
        "headers": [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]],
        "body": body.decode("latin-1"),
    }
    await answer(send, json.dumps(seen).encode(), headers=[(b"content-type", b"application/json")])


class Echo:
    """Echoes messages; closes with the code in a message `close <code> <reason>`."""

    def __init__(self) -> None:
        self.scope: Scope = {}
        self.disconnected: list[tuple[int, str | None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        self.scope = scope
        await receive()
        subprotocol = scope["subprotocols"][-1] if scope["subprotocols"] else None
        headers = [(b"set-cookie", b"a=1")]
        await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.disconnected.append((message["code"], message.get("reason")))
                return
            text = message.get("text")
            if text is not None and text.startswith("close "):
                _, code, reason = text.split(" ")
                await send({"type": "websocket.close", "code": int(code), "reason": reason})
                return
            await send({"type": "websocket.send", "text": text, "bytes": message.get("bytes")})
