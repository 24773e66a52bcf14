"""Remote servers that take their time, and leave hanging what they are sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from sandgate_gateway.callers import GATEWAY
from sandgate_gateway.upstreams import http_exchange
from sandgate_gateway.upstreams.connection import Connection
from sandgate_gateway.upstreams.http import HttpConnection
from sandgate_gateway.upstreams.http_exchange import HttpExchanges
from sandgate_gateway.upstreams.sse_connection import SseConnection
from sandgate_gateway.upstreams.stream import MAX_RELAYS

from tests.gateway.running_gateway import RunningGateway
from tests.gateway.sse_server import sse_server
from tests.gateway.stalling_server import Message, StallingServer, stalling_server
from tests.gateway.wire import LegacyWire
from tests.waiting import BOUND_S, settled, until


@asynccontextmanager
async def behind(gateway: RunningGateway, server: StallingServer, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    remote = {"type": "http", "url": server.url, "headers": {}, "allowPrivate": True}
    status = await asyncio.to_thread(gateway.configure, {"slow": remote}, **options)
    assert (status["slow"]["state"], status["slow"]["message"]) == ("ready", None)
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        yield http
    server.let_go()
    await asyncio.to_thread(gateway.put_config, {})


def is_initialize(message: Message) -> bool:
    return message.get("method") == "initialize"


def is_answer(message: Message) -> bool:
    return "method" not in message


async def test_clients_open_their_sessions_side_by_side(gateway: RunningGateway) -> None:
    async with stalling_server() as server, behind(gateway, server) as http:
        clients = [await LegacyWire(http, gateway.url).open() for _ in range(3)]
        server.holds = is_initialize
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(client.call("talk")) for client in clients]
            await until(lambda: server.held == len(clients))
            server.let_go()
        assert all("that was all" in str(call.result()) for call in calls)


async def test_calls_of_one_client_open_one_session(gateway: RunningGateway) -> None:
    async with stalling_server() as server, behind(gateway, server) as http:
        client = await LegacyWire(http, gateway.url).open()
        before = server.count("initialize")
        server.holds = is_initialize
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(client.call("talk")) for _ in range(3)]
            await until(lambda: server.held)
            assert await settled(lambda: server.held) == 1
            server.let_go()
        assert all("that was all" in str(call.result()) for call in calls)
        assert server.count("initialize") == before + 1


async def test_a_session_that_is_not_opened_in_time_fails_the_call_and_is_tried_anew(gateway: RunningGateway) -> None:
    async with stalling_server() as server:
        async with behind(gateway, server):  # what the gateway loads for its first remote server takes a while, too
            pass
        async with behind(gateway, server, start_timeout_s=3) as http:
            client = await LegacyWire(http, gateway.url).open()
            server.holds = is_initialize
            failed = (await client.call("talk"))["error"]
            assert failed["message"] == "server 'slow' did not open a session within 3 s"
            assert failed["data"] == {"server": "slow"}
            server.let_go()
            assert "that was all" in str(await client.call("talk"))


async def test_a_session_is_not_opened_any_longer_for_a_client_that_has_left(gateway: RunningGateway) -> None:
    async with stalling_server() as server, behind(gateway, server) as http:
        client = await LegacyWire(http, gateway.url).open()
        server.holds = is_initialize
        call = asyncio.create_task(client.call("talk"))
        await until(lambda: server.held == 1)
        assert (await http.delete(gateway.url, headers=client.headers)).is_success
        await until(lambda: server.held == 0)
        call.cancel()


async def test_a_server_that_leaves_the_answers_to_its_questions_hanging_gets_a_bounded_number(
    gateway: RunningGateway,
) -> None:
    async with stalling_server() as server, behind(gateway, server) as http:
        client = await LegacyWire(http, gateway.url).open()
        server.holds = is_answer
        server.says = [{"id": number, "method": "ping"} for number in range(6 * MAX_RELAYS)]
        assert "that was all" in str(await client.call("talk"))
        await until(lambda: server.held == 2 * MAX_RELAYS)
        assert await settled(lambda: server.held) == 2 * MAX_RELAYS
        answers = list(server.answers().values())
        assert sum("result" in answer for answer in answers) == MAX_RELAYS
        assert "more than 100 requests" in next(each["error"]["message"] for each in answers if "error" in each)
        server.let_go()
        await until(lambda: server.held == 0)
        server.says = [{"id": "later", "method": "ping"}]
        await client.call("talk")
        await until(lambda: server.answers().get("later", {}).get("result") == {})


async def test_questions_that_a_server_takes_back_are_not_counted(gateway: RunningGateway) -> None:
    async with stalling_server() as server, behind(gateway, server) as http:
        client = await LegacyWire(http, gateway.url).open()
        for first in (0, 60):
            server.says = []
            for number in range(first, first + 60):
                server.says.append({"id": number, "method": "ping"})
                server.says.append({"method": "notifications/cancelled", "params": {"requestId": number}})
            assert "that was all" in str(await client.call("talk"))
        server.says = [{"id": "last", "method": "ping"}]
        await client.call("talk")
        await until(lambda: "last" in server.answers())
        assert server.answers()["last"]["result"] == {}
        assert set(server.answers()) == {"last"}


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_messages_with_impossible_ids_do_not_harm_the_call_they_come_with(
    gateway: RunningGateway, era: str
) -> None:
    async with stalling_server(era) as server, behind(gateway, server) as http:
        client = await LegacyWire(http, gateway.url).open()
        server.says = [
            {"id": [1], "method": "ping"},
            {"id": {"a": 1}, "method": "roots/list"},
            {"id": 1.5, "method": "ping"},
            {"method": ["notifications/message"]},
            {"method": "notifications/cancelled", "params": {"requestId": [1]}},
            {"method": "notifications/progress", "params": {"progressToken": {}}},
            {"id": "good", "method": "ping"},
        ]
        assert "that was all" in str(await client.call("talk"))
        if era == "legacy":  # no other server asks on a stream
            await until(lambda: "good" in server.answers())
            assert set(server.answers()) == {"good"}


@asynccontextmanager
async def opened(connection: Connection) -> AsyncIterator[Connection]:
    try:
        async with asyncio.timeout(BOUND_S):
            await connection.open(skip_probe=True)
        yield connection
    finally:
        await connection.close()


def ignore(method: str, params: dict[str, Any]) -> None:
    return


async def test_a_notification_that_is_not_taken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_exchange, "DELIVERY_TIMEOUT_S", 0.2)
    async with stalling_server() as server:
        server.holds = lambda message: message.get("method") == "notifications/initialized"
        exchanges = HttpExchanges(server.url, {}, allow_private=True)
        async with opened(HttpConnection("slow", ignore, exchanges, BOUND_S)) as connection:
            await until(lambda: server.held == 0)
            assert (await connection.request("tools/list", {}, GATEWAY)).value["tools"]


async def test_a_notification_that_is_not_taken_over_the_old_transport_holds_nothing_up_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_exchange, "DELIVERY_TIMEOUT_S", 0.2)
    async with sse_server() as server:
        server.untaken = "notifications/roots/list_changed"
        exchanges = HttpExchanges(server.url, {}, allow_private=True)
        async with opened(SseConnection("old", ignore, exchanges)) as connection:
            await connection.notify("notifications/roots/list_changed", {}, GATEWAY)
            async with asyncio.timeout(BOUND_S):
                assert (await connection.request("tools/list", {}, GATEWAY)).value["tools"]
