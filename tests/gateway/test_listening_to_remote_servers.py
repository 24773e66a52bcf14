"""Streams on which remote servers tell of changes, and what holds while there is none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sandgate_gateway.upstreams.http import HttpConnection
from sandgate_gateway.upstreams.http_exchange import HttpExchanges

from tests.gateway.listening_server import ListeningServer, listening_server
from tests.waiting import BOUND_S, settled, until

BOTH_ERAS = pytest.mark.parametrize("era", ["legacy", "modern"])
CHANGED = "notifications/tools/list_changed"


@asynccontextmanager
async def connected(server: ListeningServer, heard: list[str]) -> AsyncIterator[HttpConnection]:
    """What the server tells of changes, or may have told, is in `heard`."""

    def hear(method: str, params: dict[str, Any]) -> None:
        heard.append(method)

    connection = HttpConnection("remote", hear, HttpExchanges(server.url, {}, allow_private=True), BOUND_S)
    try:
        async with asyncio.timeout(BOUND_S):
            await connection.open()
        yield connection
    finally:
        await connection.close()


@BOTH_ERAS
@pytest.mark.parametrize("status", [503, 429, 200])
async def test_a_stream_that_is_refused_for_a_while_is_opened_again(era: str, status: int) -> None:
    heard: list[str] = []
    async with listening_server(era) as server, connected(server, heard) as connection:
        await until(lambda: connection.hears_changes)
        assert heard == []
        server.refusal = status
        server.end_streams()
        await until(lambda: CHANGED in heard)
        assert not connection.hears_changes  # so what is read now is good for a while only
        heard.clear()
        server.refusal = None
        await until(lambda: connection.hears_changes)
        assert CHANGED in heard


@BOTH_ERAS
async def test_lists_are_read_anew_when_a_server_does_not_tell_of_changes_any_more(era: str) -> None:
    heard: list[str] = []
    async with listening_server(era) as server, connected(server, heard) as connection:
        await until(lambda: connection.hears_changes)
        server.refusal = 405
        server.end_streams()
        await until(lambda: CHANGED in heard)
        assert not connection.hears_changes
        assert await settled(lambda: server.asked) == 2


@BOTH_ERAS
async def test_a_server_that_never_told_of_changes_is_not_asked_again(era: str) -> None:
    heard: list[str] = []
    async with listening_server(era) as server:
        server.refusal = 503
        async with connected(server, heard):
            assert await settled(lambda: server.asked) == 1
            assert heard == []
