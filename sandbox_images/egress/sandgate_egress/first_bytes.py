"""The host name that a connection begins with: in a TLS ClientHello or in the head of an HTTP/1 request. No I/O.

Both readers are strict, because what they make of the bytes must be what the server at the other end makes of them:
anything that could be read in two ways is no name.
"""

from __future__ import annotations

import re

LONGEST = 32 * 1024
"""Bytes within which the name must be found. A ClientHello with post-quantum key shares takes about 2 KiB."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0
_LONGEST_RECORD = 1 << 14

_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [^\s]+ HTTP/1\.[01]")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*", re.DOTALL)
_HOST = re.compile(r"(?=.{1,253}\.?(?::|$))((?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63})\.?(?::[0-9]{1,5})?")


class Incomplete(Exception):  # noqa: N818 - not an error: read on
    """The name is not among these bytes yet."""


class NoName(Exception):  # noqa: N818 - a fact about the bytes
    """They begin no connection that says which host it is for."""


def host_of_http(data: bytes) -> str:
    """From the Host header. Raises: Incomplete before the head's end, NoName."""
    head, end, _ = data.partition(b"\r\n\r\n")
    request_line, *lines = head.split(b"\r\n")
    if not end:
        if b"\r\n" in data and not _REQUEST_LINE.fullmatch(request_line):
            raise NoName("not an HTTP/1 request")
        raise Incomplete
    if not _REQUEST_LINE.fullmatch(request_line):
        raise NoName("not an HTTP/1 request")
    hosts = []
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None or b"\n" in line or b"\r" in line:
            raise NoName("a header that could be read in two ways")
        if header[1].lower() == b"host":
            hosts.append(header[2])
    if len(hosts) != 1:
        raise NoName(f"{len(hosts)} Host headers")
    return _host(hosts[0])


def host_of_tls(data: bytes) -> str:
    """From the server name extension (RFC 6066, section 3). Raises: Incomplete, NoName."""
    hello = _Bytes(_client_hello(data))
    hello.skip(2 + 32)  # version, random
    hello.vector(1)  # session id
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression methods
    extensions = hello.vector(2)
    if not hello.is_empty:
        raise NoName("bytes after the extensions")
    names = []
    while not extensions.is_empty:
        kind = extensions.number(2)
        content = extensions.vector(2)
        if kind == _SERVER_NAME:
            entries = content.vector(2)
            while not entries.is_empty:
                if entries.number(1) != _HOST_NAME:
                    raise NoName("a server name of an unknown kind")
                names.append(entries.vector(2).rest())
    if len(names) != 1:
        raise NoName(f"{len(names)} server names")
    return _host(names[0], with_port=False)


def _client_hello(data: bytes) -> bytes:
    """Its body, put together from as many records as it is spread over (RFC 8446, section 5.1)."""
    handshake = b""
    while True:
        if len(data) < 5:
            if data[:1] not in (b"", bytes([_HANDSHAKE])):
                raise NoName("not TLS")
            raise Incomplete
        length = int.from_bytes(data[3:5])
        if data[0] != _HANDSHAKE or data[1] != 3 or not 0 < length <= _LONGEST_RECORD:
            raise NoName("not a TLS handshake")
        handshake += data[5 : 5 + length]
        if handshake and handshake[0] != _CLIENT_HELLO:
            raise NoName("not a ClientHello")
        if len(handshake) >= 4:
            size = int.from_bytes(handshake[1:4])
            if len(handshake) >= 4 + size:
                return handshake[4 : 4 + size]
        if len(data) < 5 + length:
            raise Incomplete
        data = data[5 + length :]


class _Bytes:
    """Reads forward through a message. Every reading raises NoName past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        return self._at == len(self._data)

    def skip(self, count: int) -> None:
        self._take(count)

    def number(self, size: int) -> int:
        return int.from_bytes(self._take(size))

    def vector(self, size: int) -> _Bytes:
        """What follows its own length of `size` bytes."""
        return _Bytes(self._take(self.number(size)))

    def rest(self) -> bytes:
        return self._take(len(self._data) - self._at)

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise NoName("a message that ends too early")
        self._at += count
        return taken


def _host(value: bytes, *, with_port: bool = True) -> str:
    try:
        text = value.decode("ascii").lower()
    except UnicodeDecodeError:
        raise NoName("a name that is not ASCII") from None
    host = _HOST.fullmatch(text)
    if host is None or (":" in text and not with_port):
        raise NoName("not a host name")
    return host[1]
