"""Which host a connection's first bytes name, and which bytes name none because they could be read in two ways."""

from __future__ import annotations

import ssl
import struct

import pytest
from sandgate_egress.first_bytes import Incomplete, NoName, host_of_http, host_of_tls
from sandgate_egress.hosts import AllowedHosts


def client_hello(server_name: str | None) -> bytes:
    """As OpenSSL writes it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=server_name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def in_records(handshake: bytes, size: int) -> bytes:
    """The handshake message spread over TLS records of `size` bytes."""
    parts = [handshake[i : i + size] for i in range(0, len(handshake), size)]
    return b"".join(b"\x16\x03\x01" + struct.pack(">H", len(part)) + part for part in parts)


def hello_with(extensions: bytes) -> bytes:
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    body += struct.pack(">H", len(extensions)) + extensions
    return in_records(b"\x01" + len(body).to_bytes(3) + body, 16384)


def server_name(*names: bytes, kind: int = 0) -> bytes:
    entries = b"".join(struct.pack(">BH", kind, len(name)) + name for name in names)
    content = struct.pack(">H", len(entries)) + entries
    return struct.pack(">HH", 0, len(content)) + content


def test_a_client_hello_names_its_host() -> None:
    assert host_of_tls(client_hello("API.example.com")) == "api.example.com"


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_client_hello_may_be_spread_over_many_records(size: int) -> None:
    whole = client_hello("api.example.com")
    assert host_of_tls(in_records(whole[5:], size)) == "api.example.com"


def test_a_client_hello_is_awaited_byte_by_byte() -> None:
    whole = client_hello("api.example.com")
    for length in range(len(whole)):
        with pytest.raises(Incomplete):
            host_of_tls(whole[:length])


@pytest.mark.parametrize(
    "data",
    [
        client_hello(None),
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-x\r\n",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00",
        hello_with(server_name(b"a.example", b"b.example")),
        hello_with(server_name(b"a.example") + server_name(b"b.example")),
        hello_with(server_name(b"a.example", kind=1)),
        hello_with(server_name(b"a.example:443")),
        hello_with(server_name(b"a.example\x00.b.example")),
        hello_with(server_name("bücher.example".encode())),
        hello_with(server_name(b"")),
        hello_with(server_name(b"a.example")[:-3]),
    ],
)
def test_what_is_no_clear_client_hello_names_nothing(data: bytes) -> None:
    with pytest.raises(NoName):
        host_of_tls(data)


def test_a_hand_made_hello_is_read_like_any_other() -> None:
    assert host_of_tls(hello_with(server_name(b"a.example."))) == "a.example"


@pytest.mark.parametrize(
    ("header", "host"),
    [
        (b"Host: API.example.com", "api.example.com"),
        (b"host:api.example.com:80", "api.example.com"),
        (b"HOST: \t api.example.com. \t", "api.example.com"),
        (b"Accept: a: b\r\nHost: x\r\nX-Host: y", "x"),
    ],
)
def test_an_http_request_names_the_host_of_its_header(header: bytes, host: str) -> None:
    assert host_of_http(b"GET /path?q=1 HTTP/1.1\r\n" + header + b"\r\n\r\nbody") == host


def test_a_request_is_awaited_to_the_end_of_its_head() -> None:
    whole = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
    for length in range(len(whole)):
        with pytest.raises(Incomplete):
            host_of_http(whole[:length])


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n",
        b"GET / HTTP/1.1\r\nHost: a.example, b.example\r\n",
        b"GET / HTTP/1.1\r\nHost : a.example\r\n",
        b"GET / HTTP/1.1\r\nHost: a.example\r\n b.example\r\n",
        b"GET / HTTP/1.1\r\nHost: a.example\nHost: b.example\r\n",
        b"GET / HTTP/1.1\r\nHost: a.example\rHost: b.example\r\n",
        b"GET / HTTP/1.1\r\nHost: a.example/b\r\n",
        b"GET / HTTP/1.1\r\nHost: user@a.example\r\n",
        b"GET / HTTP/1.1\r\nHost: [::1]\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\n",
        b"GET  / HTTP/1.1\r\nHost: a.example\r\n",
        b"GET / HTTP/2.0\r\nHost: a.example\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a.example\r\n",
    ],
)
def test_what_is_no_clear_request_names_nothing(head: bytes) -> None:
    with pytest.raises(NoName):
        host_of_http(head + b"\r\n")


@pytest.mark.parametrize(
    ("patterns", "inside", "outside"),
    [
        (["a.example"], ["a.example"], ["b.example", "x.a.example", "aa.example", "example", ""]),
        (["*.a.example"], ["x.a.example", "y.x.a.example"], ["a.example", "xa.example", "a.example.b"]),
        (["*"], ["a.example", "127.0.0.1", "x"], []),
        ([], [], ["a.example"]),
    ],
)
def test_patterns_stand_for_names(patterns: list[str], inside: list[str], outside: list[str]) -> None:
    hosts = AllowedHosts(patterns)
    assert [name for name in inside if name not in hosts] == []
    assert [name for name in outside if name in hosts] == []
