"""Fetching a catalog: what may be asked by whom, and what an answer may be. The server is this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.catalog.documents import MAX_DOCUMENT_BYTES
from app.catalog.fetching import FetchError, fetch_document


@asynccontextmanager
async def serving(*answers: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that gives one answer a connection, and the requests it got."""
    requests: list[bytes] = []
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(left.pop(0))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def moved(to: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\nLocation: {to}\r\n\r\n".encode()


async def test_an_operator_can_fetch_from_this_machine() -> None:
    async with serving(ok(b"registry: {}")) as (url, requests):
        assert await fetch_document(f"{url}/c.yaml?x=1", loopback_allowed=True) == b"registry: {}"
    assert requests[0].startswith(b"GET /c.yaml?x=1 HTTP/1.1\r\nHost: 127.0.0.1:")


async def test_a_redirect_is_followed_and_checked_like_the_first_url() -> None:
    async with serving(moved("/there"), ok(b"here")) as (url, _):
        assert await fetch_document(url, loopback_allowed=True) == b"here"
    async with serving(moved("https://10.0.0.1/x")) as (url, _):
        with pytest.raises(FetchError, match=r"https://10\.0\.0\.1/x: only public hosts"):
            await fetch_document(url, loopback_allowed=True)
    async with serving(moved("https://[::1")) as (url, _):
        with pytest.raises(FetchError, match="Invalid URL in location header"):
            await fetch_document(url, loopback_allowed=True)
    async with serving(*[moved("/again")] * 4) as (url, _):
        with pytest.raises(FetchError, match="redirected more than 3 times"):
            await fetch_document(url, loopback_allowed=True)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "answered 304"),
        (ok(b"x" * (MAX_DOCUMENT_BYTES + 1)), "is larger than"),
        (b"no HTTP\r\n\r\n", "Check the URL"),
    ],
)
async def test_an_answer_that_is_no_document_says_so(answer: bytes, reason: str) -> None:
    async with serving(answer) as (url, _):
        with pytest.raises(FetchError, match=reason):
            await fetch_document(url, loopback_allowed=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/c",
        "https://localhost/c",
        "https://10.1.2.3/c",
        "https://192.168.0.1/c",
        "https://169.254.169.254/latest/meta-data",
        "https://100.64.0.1/c",
        "https://0.0.0.0/c",
        "https://224.0.0.1/c",
        "https://[::1]/c",
        "https://[fd00::1]/c",
        "https://[fe80::1]/c",
        "https://[::ffff:127.0.0.1]/c",
        "https://[2002:7f00:1::]/c",
        "https://2130706433/c",
    ],
)
async def test_only_public_hosts_are_asked(url: str) -> None:
    with pytest.raises(FetchError, match=r"only public hosts are asked|is not known"):
        await fetch_document(url)


@pytest.mark.parametrize("url", ["https://10.1.2.3/c", "http://93.184.216.34/c", "https://[fd00::1]/c"])
async def test_an_operator_gets_no_further_than_this_machine(url: str) -> None:
    with pytest.raises(FetchError, match="only public hosts are asked, over https"):
        await fetch_document(url, loopback_allowed=True)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1/c", "only https is fetched"),
        ("ftp://example.com/c", "from an https URL"),
        ("file:///etc/passwd", "from an https URL"),
        ("https://", "from an https URL"),
        ("https://[::1", "cannot be read"),
        ("https://a..b/c", "is not known"),
        (f"https://{'a' * 64}.example/c", "is not known"),
        ("https://1.1.1.1/\x7f", "Check the URL"),
        ("https://me:secret@example.com/c", "holds a user name or password"),
    ],
)
async def test_a_url_that_is_none_for_a_catalog_is_refused(url: str, reason: str) -> None:
    with pytest.raises(FetchError, match=reason) as caught:
        await fetch_document(url)
    assert "secret" not in str(caught.value)
