"""The server's side of HTTP/1.1: uvicorn's, with what a server in front of strangers needs besides."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT = 64 * 1024
"""Bytes that may come without anything coming of them: the head of a request, or trailers. The parser would keep any
number. Node takes 16 KiB, nginx 32."""

_SMALL = 16 * 1024
"""More bytes than this are not worth a copy to save a system call."""

_BODY = b'{"code":431,"message":"The head of the request is too long"}'
_TOO_LONG = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)


class HttpProtocol(HttpToolsProtocol):
    """Limits heads, takes no trailers for headers (RFC 9110, section 6.5.1), and sends a small answer in one piece."""

    _pending = 0
    """Bytes since the last head, piece of a body or end of a request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, _Joining(cast(asyncio.Transport, transport))))

    def data_received(self, data: bytes) -> None:
        self._pending += len(data)
        super().data_received(data)
        if self._pending > HEAD_LIMIT and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LONG)
                self.transport.close()
            else:
                self.transport.abort()

    def on_headers_complete(self) -> None:
        self._pending = 0
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            self.headers = []  # trailers, which nobody reads; the request's own are in its scope

    def on_body(self, body: bytes) -> None:
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._pending = 0
        super().on_message_complete()


class _Joining:
    """A transport that joins what is written in one turn of the event loop.

    uvicorn writes the head and the body of an answer apart, and uvloop sends each write at once: two system calls, two
    packets and two wake-ups of the reader for an answer that fits into one.
    """

    __slots__ = (
        "_loop",
        "_transport",
        "_waiting",
        "abort",
        "get_extra_info",
        "is_closing",
        "pause_reading",
        "resume_reading",
    )

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._waiting: list[bytes] = []
        self.abort = transport.abort
        self.get_extra_info = transport.get_extra_info
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def write(self, data: bytes) -> None:
        if len(data) > _SMALL:
            self._flush()
            self._transport.write(data)
            return
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        waiting = self._waiting
        if waiting:
            self._waiting = []
            self._transport.write(waiting[0] if len(waiting) == 1 else b"".join(waiting))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
