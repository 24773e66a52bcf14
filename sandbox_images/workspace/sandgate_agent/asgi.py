"""A request and its answer on raw ASGI: just what the agent's endpoints need, without a framework's weight."""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import orjson

from sandgate_agent.errors import BodyTooLarge, ClientGone

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Request:
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        """Names in lower case; of a repeated header the last one."""
        self.query: dict[str, str] = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        self.answered = False
        """Whether the status line has been sent."""
        self._receive = receive
        self._send = send

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives; the server stops reading from the network while a chunk is being worked on.

        Raises: ClientGone.
        """
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            more = message.get("more_body", False)
            if body := message.get("body", b""):
                yield body

    async def body(self, *, limit: int) -> bytes:
        """The whole body. Raises: BodyTooLarge over `limit` bytes, ClientGone."""
        collected = bytearray()
        async for chunk in self.chunks():
            collected += chunk
            if len(collected) > limit:
                raise BodyTooLarge(f"the request body is larger than {limit} bytes")
        return bytes(collected)

    async def disconnected(self) -> None:
        """Return once the caller has hung up. Only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start_answer(self, status: int, headers: dict[str, str]) -> None:
        self.answered = True
        encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def send_chunk(self, body: bytes) -> None:
        """Waits while the network is slower than the sender."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end_answer(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        length = {} if status in (204, 304) else {"Content-Length": str(len(body))}
        await self.start_answer(status, {**length, **(headers or {})})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def answer_json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        await self.answer(status, orjson.dumps(value), {"Content-Type": "application/json", **(headers or {})})
