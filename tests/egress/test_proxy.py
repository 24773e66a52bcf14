"""The egress proxy in this process, with `localhost` as the internet: what it joins, refuses, ends and survives."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme
from sandgate_egress.proxy import Listener, Proxy

from tests.waiting import BOUND_S

_US = "127.0.0.1"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
    writer.write(b"end")
    writer.close()


@asynccontextmanager
async def proxied(
    serve: Serve = echo,
    *,
    hosts: Sequence[str] | None = ("localhost",),
    is_tls: bool = False,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[Proxy, int]]:
    """A proxy in front of a server on this host that may be reached by `hosts`, and the proxy's port."""
    async with await asyncio.start_server(serve, _US, 0, ssl=context) as server:
        target = server.sockets[0].getsockname()[1]
        proxy = Proxy()
        proxy.allow({_US: hosts})
        async with proxy.serve([Listener(_US, 0, target_port=target, is_tls=is_tls)]) as ports:
            yield proxy, ports[0]


@asynccontextmanager
async def connected(port: int, **more: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(BOUND_S):
        reader, writer = await asyncio.open_connection(_US, port, **more)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


def request(host: str) -> bytes:
    return f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


async def is_cut(reader: asyncio.StreamReader) -> bool:
    """Whether nothing comes but the end, in an orderly way or not."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


async def test_what_was_read_to_find_the_name_goes_on_and_so_does_the_rest() -> None:
    async with proxied() as (proxy, port), connected(port) as (reader, writer):
        writer.write(request("localhost"))
        assert await reader.readexactly(len(request("localhost"))) == request("localhost")
        writer.write(b"more")
        assert await reader.readexactly(4) == b"more"
        writer.write_eof()
        assert await reader.read() == b"end"


async def test_large_streams_go_through_whole_in_both_directions() -> None:
    blob = bytes(range(256)) * 16384
    async with proxied() as (proxy, port), connected(port) as (reader, writer):
        head = request("localhost")

        async def send() -> None:
            writer.write(head + blob)
            await writer.drain()
            writer.write_eof()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            received = group.create_task(reader.read())
        assert received.result() == head + blob + b"end"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request("elsewhere.example"), b"403 Forbidden"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10000, b"400 Bad Request"),
    ],
)
async def test_a_refusal_of_http_says_why(sent: bytes, status: bytes) -> None:
    async with proxied() as (proxy, port), connected(port) as (reader, writer):
        writer.write(sent)
        assert status in await reader.readline()


async def test_a_host_that_does_not_answer_is_a_bad_gateway() -> None:
    with socket.create_server((_US, 0)) as taken:
        unused = taken.getsockname()[1]
    proxy = Proxy()
    proxy.allow({_US: ["*"]})
    async with (
        proxy.serve([Listener(_US, 0, target_port=unused, is_tls=False)]) as ports,
        connected(ports[0]) as (reader, writer),
    ):
        writer.write(request("localhost"))
        assert b"502 Bad Gateway" in await reader.readline()


async def test_tls_passes_untouched_to_the_host_it_names_and_ends_with_an_alert_otherwise() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with proxied(is_tls=True, context=context) as (proxy, port):
        async with connected(port, ssl=trusting, server_hostname="localhost") as (reader, writer):
            writer.write(b"secret")
            assert await reader.readexactly(6) == b"secret"
        with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
            async with connected(port, ssl=trusting, server_hostname="elsewhere.example"):
                pass


async def test_a_sandbox_that_nothing_is_known_of_is_let_go_at_once() -> None:
    async with proxied(hosts=None) as (_, port), connected(port) as (reader, writer):
        writer.write(request("localhost"))
        assert await is_cut(reader)


@pytest.mark.parametrize("told", [["elsewhere.example"], None])
async def test_taking_a_host_back_ends_its_open_connections(told: list[str] | None) -> None:
    ended = asyncio.Event()

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await echo(reader, writer)
        except ConnectionResetError:
            pass
        finally:
            writer.close()
            ended.set()

    async with proxied(watch) as (proxy, port), connected(port) as (reader, writer):
        writer.write(request("localhost"))
        await reader.readexactly(len(request("localhost")))
        proxy.allow({_US: ["localhost", "elsewhere.example"], "192.0.2.1": None})
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        proxy.allow({_US: told})
        assert await is_cut(reader)
        async with asyncio.timeout(BOUND_S):
            await ended.wait()


async def test_a_connection_that_has_not_named_its_host_yet_is_judged_by_the_rules_of_then() -> None:
    async with proxied() as (proxy, port), connected(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n")
        await writer.drain()
        proxy.allow({_US: ["elsewhere.example"]})
        writer.write(b"Host: localhost\r\n\r\n")
        assert b"403" in await reader.readline()


async def test_a_sandbox_can_hold_no_more_connections_than_its_share() -> None:
    async with proxied() as (proxy, port):
        held = []
        try:
            for _ in range(512):
                reader, writer = await asyncio.open_connection(_US, port)
                held.append(writer)
            # They are taken up in order, so the last answer means that all are.
            writer.write(request("localhost"))
            await reader.readexactly(1)
            async with connected(port) as (reader, writer):
                writer.write(request("localhost"))
                assert await is_cut(reader)
        finally:
            for writer in held:
                writer.transport.abort()


async def test_what_is_allowed_is_told_again_as_it_was_told() -> None:
    proxy = Proxy()
    proxy.allow({"192.0.2.1": ["a.example", "*.b.example"], "192.0.2.2": ["*"]})
    proxy.allow({"192.0.2.2": None, "192.0.2.3": None})
    assert proxy.allowed() == {"192.0.2.1": ("a.example", "*.b.example")}
