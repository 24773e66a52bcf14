"""The server's side of HTTP/1.1: uvicorn's, with what a server in front of strangers needs besides."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT = 64 * 1024
"""Bytes that may come without anything coming of them: the head of a request, or trailers. The parser would keep any
number. Node takes 16 KiB, nginx 32."""

_BODY = b'{"code":431,"message":"The head of the request is too long"}'
_TOO_LONG = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)


class HttpProtocol(HttpToolsProtocol):
    """Limits heads, and does not take trailers for headers (RFC 9110, section 6.5.1)."""

    _pending = 0
    """Bytes since the last head, piece of a body or end of a request."""

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
