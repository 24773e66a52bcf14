"""Calls to a pod that does not listen yet, or answers with what it must not, on real sockets."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
import pytest

from app.sandboxes.pod_clients import (
    AGENT_PORT,
    GATEWAY_CONTROL_PORT,
    AgentClient,
    AnswerRefusedError,
    GatewayClient,
    PodUnreachableError,
)
from app.sandboxes.pod_http import make_http_client
from tests.waiting import BOUND_S, until

_ADDRESS = "127.0.77.1"
_HOSTILE = "127.0.77.2"
_OK = b"HTTP/1.1 200 OK\r\n"
_ZEROS = bytes(64 * 1024 + 1)


@asynccontextmanager
async def asking(answer: bytes, *, port: int = AGENT_PORT) -> AsyncIterator[httpx.AsyncClient]:
    """A client, and a pod that sends these bytes as soon as it is asked."""
    open_connections: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_connections.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await reader.read()
        writer.close()
        open_connections.discard(writer)

    async with await asyncio.start_server(serve, _HOSTILE, port):
        async with make_http_client() as http, asyncio.timeout(BOUND_S):
            yield http
        await until(lambda: not open_connections)


def sized(body: bytes, head: bytes = b"") -> bytes:
    return _OK + head + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def test_an_agent_is_waited_for_until_it_listens() -> None:
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.read(4096)
        if head:  # a knock says nothing
            asked.append(head)
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with make_http_client() as http, asyncio.timeout(BOUND_S):
        agents = AgentClient(http)
        telling = asyncio.create_task(agents.init(_ADDRESS, "token", {"sandboxId": "i1"}))
        assert not await agents.is_healthy(_ADDRESS)  # as long as this takes, nobody listens
        assert not telling.done()
        server = await asyncio.start_server(answer, _ADDRESS, AGENT_PORT)
        async with server:
            await telling
    (head,) = asked
    assert head.startswith(b"POST /init ")


@pytest.mark.parametrize(
    "answer",
    [
        sized(gzip.compress(b"{}", mtime=0), b"Content-Encoding: gzip\r\n"),
        sized(_ZEROS),
        _OK + b"Content-Length: 1000000000000\r\n\r\n" + _ZEROS,
        _OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"10001\r\n" + _ZEROS + b"\r\n",
        _OK + b"\r\n" + _ZEROS,
    ],
    ids=["encoded", "large", "said to be huge", "chunked", "without a length"],
)
async def test_no_more_of_an_answer_is_taken_than_an_agent_has_to_say(answer: bytes) -> None:
    async with asking(answer) as http:
        with pytest.raises(AnswerRefusedError):
            await AgentClient(http).usage(_HOSTILE, "token")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nLocation: a:b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.77.1/\r\nContent-Length: 0\r\n\r\n",
        sized(b"no JSON"),
        b"no HTTP\r\n\r\n",
    ],
    ids=["to nowhere", "elsewhere", "no JSON", "no HTTP"],
)
async def test_an_answer_that_is_none_counts_as_none(answer: bytes) -> None:
    async with asking(answer) as http:
        with pytest.raises(PodUnreachableError):
            await AgentClient(http).usage(_HOSTILE, "token")


@pytest.mark.parametrize("head", [b"Location: a:b\r\n", b"Location: http://[\r\n"])
async def test_an_agent_that_sends_its_asker_elsewhere_is_not_healthy(head: bytes) -> None:
    answer = b"HTTP/1.1 307 Temporary Redirect\r\n" + head + b"Content-Length: 0\r\n\r\n"
    async with asking(answer) as http:
        assert not await AgentClient(http).is_healthy(_HOSTILE)


async def test_what_an_agent_has_its_asker_remember_is_forgotten() -> None:
    async with asking(sized(b"{}", b"Set-Cookie: a=b\r\n")) as http:
        assert await AgentClient(http).usage(_HOSTILE, "token") == {}
        assert not http.cookies


@pytest.mark.parametrize(
    "envelope", [b"\0\xff\xff\xff\xff", b"\0\0\0\0\2[]", b"\0\0\0\0\1x", b'\0\0\0\0\x14{"event":{"start":1}}']
)
async def test_an_agent_cannot_say_anything_as_an_event_of_a_command(envelope: bytes) -> None:
    head = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
    async with asking(head + b"%x\r\n%s\r\n" % (len(envelope), envelope)) as http:
        with pytest.raises(PodUnreachableError):
            await AgentClient(http).start_command(_HOSTILE, "token", "true", user=None, cwd=None)


@pytest.mark.parametrize("body", [b"[]", b'{"requests": 1}', b'{"requests": [1]}', b'{"requests": [{}]}', b"{"])
async def test_a_gateway_cannot_ask_for_anything_but_requests(body: bytes) -> None:
    async with asking(sized(body), port=GATEWAY_CONTROL_PORT) as http:
        with pytest.raises(PodUnreachableError):
            await GatewayClient(http).requests(_HOSTILE, "token", known=(), wait_s=0)


async def test_a_server_cannot_be_in_a_state_that_there_is_not() -> None:
    body = b'{"servers": [{"name": "time", "state": "odd"}]}'
    async with asking(sized(body), port=GATEWAY_CONTROL_PORT) as http:
        with pytest.raises(PodUnreachableError):
            await GatewayClient(http).status(_HOSTILE, "token")


async def test_lists_that_are_too_large_to_be_remembered_are_not_read() -> None:
    head = _OK + b"Content-Length: 1000000000\r\n\r\n"
    async with asking(head + bytes(5_000_000), port=GATEWAY_CONTROL_PORT) as http:
        with pytest.raises(AnswerRefusedError):
            await GatewayClient(http).lists(_HOSTILE, "token", "time")
