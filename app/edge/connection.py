"""One HTTP/1.1 connection to a port of a pod. Knows bytes and framing; nothing of sandboxes or ASGI.

Own code on the parser that uvicorn uses, instead of a client library, because the edge needs raw heads in and out, both
directions at once, back-pressure on each, an abort that is felt at once, and to know whether an answer had begun. A
general client parses and rebuilds what is only passed on: with aiohttp the whole proxied request took 1.6 times the
processor time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from app.edge.stalls import StallWatch

_HEAD_LIMIT = 256 * 1024
"""Most bytes before the end of a response head, interim responses included: a pod is not trusted."""
_BUFFER_LIMIT = 128 * 1024
"""Reading from the pod pauses while more than this waits for the client."""


def _ends_body(header: tuple[bytes, bytes]) -> bool:
    """Whether a header says where the body ends; without one it ends with the connection (RFC 9112, section 6.3)."""
    name = header[0].lower()
    return name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in header[1].lower())


class ConnectionBrokenError(Exception):
    """The pod's side ended, or sent something that is not HTTP, before the response was complete."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    status: int
    headers: list[tuple[bytes, bytes]]
    """As received: order, duplicates and letter case kept."""


class Connection(asyncio.Protocol):
    """Carries one exchange at a time: `start`, `write` and `drain`; `head`, then `read` until nothing more comes."""

    def __init__(self, stall_s: float | None = None) -> None:
        """`stall_s` is how long a `drain` waits at most for a pod that takes nothing."""
        self._transport: asyncio.Transport
        self._stall_s = stall_s
        self._closed = False
        self._writable: asyncio.Future[None] | None = None
        self._reader: asyncio.Future[None] | None = None
        self._parser: HttpResponseParser | None = None
        self._reset()

    def _reset(self) -> None:
        self.answered = False
        """Whether anything came back for the exchange that was started last."""
        self._head: ResponseHead | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._is_head_request = False
        self._ends_with_connection = False
        self._complete = False
        self._keep_alive = False
        self._error: ConnectionBrokenError | None = None

    # The exchange

    def start(self, request: bytes, *, is_head_request: bool) -> None:
        """Sends a request head, and with it as much of the body as is at hand."""
        self._reset()
        if self._closed:
            self._error = ConnectionBrokenError("closed")
        self._is_head_request = is_head_request
        self._parser = HttpResponseParser(self)
        self._transport.write(request)

    def write(self, data: bytes) -> None:
        if not self._closed:
            self._transport.write(data)

    def write_chunk(self, data: bytes) -> None:
        """Sends a piece of a chunked body; an empty piece ends the body."""
        if not self._closed:
            self._transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))

    async def drain(self) -> None:
        """Returns once the pod has taken enough of what was written. Raises: ConnectionBrokenError."""
        if self._writable is not None:
            await self._until_writable(self._writable)
        if self._closed:
            raise self._error or ConnectionBrokenError("closed")

    async def head(self) -> ResponseHead:
        """Raises: ConnectionBrokenError."""
        while self._head is None:
            if self._error is not None:
                raise self._error
            await self._more()
        return self._head

    async def read(self) -> tuple[bytes, bool]:
        """The next bytes of the body once there are any, and whether more may follow. Raises: ConnectionBrokenError."""
        while not self._chunks and not self._complete:
            if self._error is not None:
                raise self._error
            await self._more()
        data = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return data, not self._complete

    def is_reusable(self) -> bool:
        return self._complete and self._keep_alive and not self._closed and not self._transport.is_closing()

    def abort(self) -> None:
        """Ends the connection at once; whoever waits on it gets ConnectionBrokenError. Safe to repeat."""
        self._fail("aborted")

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._complete:
            # Nothing was asked, or more was sent than the response: the connection cannot be trusted any further.
            self._keep_alive = False
            self._transport.abort()
            return
        self.answered = True
        if self._head is None:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            # After a complete message the error is about surplus bytes, which concern only the next exchange.
            self._keep_alive = False
            if not self._complete:
                self._fail(f"not a valid HTTP response: {error}")
        if self._head is None and self._head_size > _HEAD_LIMIT:
            self._fail("the response head is too long")
        if self._buffered > _BUFFER_LIMIT and not self._paused and not self._closed and not self._complete:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        if self._ends_with_connection and self._error is None:
            self._complete = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("connection lost")
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            if not self._writable.done():
                self._writable.set_result(None)
            self._writable = None

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._complete:
            self._keep_alive = False  # a second response, which nobody asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head is None:  # later ones are trailers, or those of a surplus response
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._head is not None:
            return
        parser = cast(HttpResponseParser, self._parser)
        status = parser.get_status_code()
        if status < 200:
            self._headers = []
            return
        if not 200 <= status <= 599:
            raise ValueError(f"status {status}")
        self._head = ResponseHead(status, self._headers)
        if self._is_head_request:
            self._complete = True
            self._keep_alive = parser.should_keep_alive()
            return
        self._ends_with_connection = status not in (204, 304) and not any(map(_ends_body, self._headers))

    def on_body(self, data: bytes) -> None:
        if self._complete:
            self._keep_alive = False  # a body after the answer to HEAD
            return
        self._chunks.append(data)
        self._buffered += len(data)

    def on_message_complete(self) -> None:
        if self._head is not None and not self._complete:
            self._complete = True
            self._keep_alive = cast(HttpResponseParser, self._parser).should_keep_alive()

    # Waiting

    async def _until_writable(self, writable: asyncio.Future[None]) -> None:
        if self._stall_s is None:
            await writable
            return
        watch = StallWatch(self._transport, self._stall_s, lambda: self._fail("nothing more was taken"))
        try:
            await writable
        finally:
            watch.end()

    async def _more(self) -> None:
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _fail(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        if self._error is None and not self._complete:
            self._error = ConnectionBrokenError(reason)
        self._transport.abort()
        self._wake()
