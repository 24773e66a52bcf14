"""Streams on which remote servers tell of changes, and what holds while there is none."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from sandgate_gateway.upstreams import http
from sandgate_gateway.upstreams.connection import CouldNotConnectError
from sandgate_gateway.upstreams.http import HttpConnection
from sandgate_gateway.upstreams.http_exchange import HttpExchanges, HttpStatusError

from tests.gateway.listening_server import ListeningServer, listening_server
from tests.waiting import BOUND_S, settled, until

BOTH_ERAS = pytest.mark.parametrize("era", ["legacy", "modern"])
CHANGED = "notifications/tools/list_changed"
UPDATED = "notifications/resources/updated"


class UnsteadyExchanges(HttpExchanges):
    """Does not get through to the stream of changes for the reasons that a test gives, one each time."""

    def __init__(self, url: str) -> None:
        super().__init__(url, {}, allow_private=True)
        self.troubles: list[Exception] = []

    @asynccontextmanager
    async def post(
        self, body: bytes, headers: Mapping[str, str], url: str | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self.troubles and b'"subscriptions/listen"' in body:
            raise self.troubles.pop(0)
        async with super().post(body, headers, url) as response:
            yield response

    @asynccontextmanager
    async def get(self, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        if self.troubles:
            raise self.troubles.pop(0)
        async with super().get(headers) as response:
            yield response


@asynccontextmanager
async def connected(
    server: ListeningServer, heard: list[str], exchanges: HttpExchanges | None = None
) -> AsyncIterator[HttpConnection]:
    """What the server tells of changes, or may have told, is in `heard`."""

    def hear(method: str, params: dict[str, Any]) -> None:
        heard.append(method)

    exchanges = exchanges or HttpExchanges(server.url, {}, allow_private=True)
    connection = HttpConnection("remote", hear, exchanges, BOUND_S)
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


@BOTH_ERAS
async def test_a_server_that_refuses_its_stream_between_failures_is_still_there(
    era: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "RECONNECT_PAUSE_S", 0.05)
    heard: list[str] = []
    async with listening_server(era) as server:
        exchanges = UnsteadyExchanges(server.url)
        async with connected(server, heard, exchanges) as connection:
            await until(lambda: connection.hears_changes)
            failure = CouldNotConnectError("could not be reached: Connection refused")
            exchanges.troubles = [failure, failure, failure, HttpStatusError(503), failure, failure]
            server.end_streams()
            await until(lambda: not exchanges.troubles)
            await until(lambda: connection.hears_changes)


async def test_a_new_subscription_has_no_list_read_again() -> None:
    heard: list[str] = []
    async with listening_server("modern") as server, connected(server, heard) as connection:
        await until(lambda: connection.hears_changes)
        (before,) = server.streams
        assert await connection.subscribe(frozenset({"memo:x"}), BOUND_S) == {}
        await until(lambda: server.streams and before not in server.streams)
        assert connection.hears_changes
        await server.tell(UPDATED)
        await until(lambda: heard)
        assert heard == [UPDATED]


async def test_a_subscription_that_is_there_already_opens_no_stream() -> None:
    async with listening_server("modern") as server, connected(server, []) as connection:
        await until(lambda: connection.hears_changes)
        for _ in range(2):
            assert await connection.subscribe(frozenset({"memo:x"}), BOUND_S) == {}
            await until(lambda: server.asked == 2)
        assert await settled(lambda: server.asked) == 2


async def test_a_change_is_heard_while_a_new_subscription_is_not_acknowledged_yet() -> None:
    heard: list[str] = []
    async with listening_server("modern") as server, connected(server, heard) as connection:
        await until(lambda: connection.hears_changes)
        server.holds = True
        (before,) = server.streams
        await connection.subscribe(frozenset({"memo:x"}), BOUND_S)
        await until(lambda: server.asked == 2)
        await connection.subscribe(frozenset({"memo:y"}), BOUND_S)
        await until(lambda: server.asked == 3)
        await server.tell(CHANGED)
        await until(lambda: heard)
        assert (heard, connection.hears_changes) == ([CHANGED], True)
        server.holds = False
        await until(lambda: server.streams and before not in server.streams)


async def test_a_server_that_gives_a_client_one_stream_only_is_rid_of_the_one_before() -> None:
    heard: list[str] = []
    async with listening_server("modern") as server, connected(server, heard) as connection:
        await until(lambda: connection.hears_changes)
        server.refusal = 429
        await connection.subscribe(frozenset({"memo:x"}), BOUND_S)
        await until(lambda: not server.streams)
        await until(lambda: CHANGED in heard)
        server.refusal = None
        await until(lambda: connection.hears_changes)
