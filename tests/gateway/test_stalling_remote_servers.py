"""Remote servers that take their time, and leave hanging what they are sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.gateway.running_gateway import RunningGateway
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
