"""The least an ASGI application can do: what the load generator gets out of it shows where the generator's limit is."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

_BODY = b'{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"' + b"x" * 50 + b'"}]}}'
_HEADERS = [(b"content-length", str(len(_BODY)).encode()), (b"content-type", b"application/json")]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the request's body, as the edge and the gateway have to."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _BODY})
