"""A remote MCP server over HTTP+SSE, the transport of 2024-11-05: one event stream that stays open carries everything
the server says, and each message to it is a POST to the address that the stream's first event names.

All clients share the session, as on stdio; correlation.py says whose message is whose.
"""

import asyncio
from contextlib import suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

import orjson

from sandgate_gateway.cancelling import cancel_all
from sandgate_gateway.jsonrpc import RpcError
from sandgate_gateway.protocol import INTERNAL_ERROR
from sandgate_gateway.sse import Event
from sandgate_gateway.upstreams.connection import (
    ConnectionEndedError,
    CouldNotConnectError,
    Listener,
    NotDeliveredError,
)
from sandgate_gateway.upstreams.http_exchange import HttpExchanges, HttpStatusError, events
from sandgate_gateway.upstreams.stream import StreamConnection

ENDPOINT_TIMEOUT_S = 10.0
"""Within which the first event must come."""

MAX_WAITING = 256
"""Messages to the server that are not sent yet; more wait before they are queued."""

_REQUEST_HEAD = b'{"jsonrpc":"2.0","id":'

_SESSION_LOST = (404, 410)


class SseConnection(StreamConnection):
    """One session, from the opening of its stream to the end of it."""

    def __init__(self, name: str, listener: Listener, exchanges: HttpExchanges) -> None:
        super().__init__(name, listener)
        self._exchanges = exchanges
        self._endpoint: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._posts: set[asyncio.Task[None]] = set()
        self._workers: list[asyncio.Task[None]] = []
        self._pause_s = 0.0

    async def open(self, *, skip_probe: bool = False) -> None:
        # Nobody speaks 2026-07-28 over this transport.
        await super().open(skip_probe=True)

    async def start(self) -> None:
        self._workers = [
            asyncio.create_task(self._read(), name=f"read {self._name}"),
            asyncio.create_task(self._send(), name=f"send {self._name}"),
        ]
        try:
            async with asyncio.timeout(ENDPOINT_TIMEOUT_S):
                await asyncio.shield(self._endpoint)
        except TimeoutError:
            raise CouldNotConnectError("sent no endpoint event: its URL must be the one of an SSE stream") from None

    def write(self, data: bytes) -> None:
        self._outbox.put_nowait(data)
        if self._outbox.qsize() >= MAX_WAITING:
            self.pause_writing()

    def hold_back(self, seconds: float) -> None:
        self._pause_s = seconds

    async def close(self) -> None:
        await cancel_all([*self._workers, *self._posts])
        self._endpoint.cancel()
        self.ended("was stopped")
        await self._exchanges.close()

    # What the server says

    async def _read(self) -> None:
        try:
            async with self._exchanges.get({}) as response:
                async for event in events(response):
                    self._event(event)
                    if self._pause_s:
                        pause, self._pause_s = self._pause_s, 0.0
                        await asyncio.sleep(pause)
            problem: Exception = ConnectionEndedError("closed its event stream")
        except HttpStatusError as error:
            problem = CouldNotConnectError(_in_words(error), final=error.status < 500)
        except (ConnectionEndedError, RpcError) as error:
            problem = error
        if not self._endpoint.done():
            self._endpoint.set_exception(problem)
        self.ended(str(problem))

    def _event(self, event: Event) -> None:
        if event.name == "message":
            self.messages_received([event.data])
        elif event.name == "endpoint" and not self._endpoint.done():
            stream, endpoint = self._exchanges.url, urljoin(self._exchanges.url, event.data.decode("utf-8", "replace"))
            if urlsplit(endpoint)[:2] == urlsplit(stream)[:2]:
                self._endpoint.set_result(endpoint)
            else:
                # The configured credentials go there: it must be whom they are for.
                problem = "names an endpoint at another host, which the gateway does not follow"
                self._endpoint.set_exception(CouldNotConnectError(problem, final=True))

    # What is said to the server

    async def _send(self) -> None:
        """Requests are sent side by side, because some servers answer the POST only when they have done the work. What
        is no request goes alone, and is given up after a while: `initialized` must be there before what follows it."""
        while True:
            data = await self._outbox.get()
            if self._outbox.qsize() < MAX_WAITING // 2:
                self.resume_writing()
            post = asyncio.create_task(self._post(data), name=f"post {self._name}")
            self._posts.add(post)
            post.add_done_callback(self._posts.discard)
            if not data.startswith(_REQUEST_HEAD):
                await asyncio.wait((post,))

    async def _post(self, data: bytes) -> None:
        try:
            url = await asyncio.shield(self._endpoint)
            if not data.startswith(_REQUEST_HEAD):
                await self._exchanges.deliver(data, {}, url)
                return
            async with self._exchanges.post(data, {}, url):
                return
        except HttpStatusError as error:
            if error.status in _SESSION_LOST:
                self._not_delivered(data, NotDeliveredError("has forgotten the session"))
                self.ended("has forgotten the session")
            else:
                self._not_delivered(data, RpcError(INTERNAL_ERROR, f"server {self._name!r} {error}"))
        except (ConnectionEndedError, RpcError) as error:
            self._not_delivered(data, error)

    def _not_delivered(self, data: bytes, problem: Exception) -> None:
        message: dict[str, Any] = orjson.loads(data)
        entry = self._correlation.take(message.get("id")) if "method" in message else None
        if entry is not None and not entry.answer.done():
            entry.answer.set_exception(problem)


async def speaks_sse(exchanges: HttpExchanges, within_s: float) -> bool:
    """Whether a GET opens an event stream that begins with `endpoint`, as only this transport does."""
    with suppress(ConnectionEndedError, HttpStatusError, RpcError, TimeoutError):
        async with asyncio.timeout(within_s), exchanges.get({}) as response:
            async for event in events(response):
                return event.name == "endpoint"
    return False


def _in_words(error: HttpStatusError) -> str:
    if error.status in (401, 403):
        return f"refuses the configured credentials (HTTP status {error.status})"
    return f"{error}; its URL must be the one of an SSE stream"
