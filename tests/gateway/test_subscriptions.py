"""Subscriptions to resources: what the server is told, and what of it the client hears."""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from sandgate_gateway.cancelling import cancel_all
from sandgate_gateway.configuration import ServerDefinition, StdioTransport
from sandgate_gateway.jsonrpc import RpcError
from sandgate_gateway.servers.server import Server

from tests.gateway.memory_connection import MemoryConnection, Message
from tests.gateway.running_gateway import RunningGateway, held_up, scripted
from tests.gateway.wire import LegacyWire, messages
from tests.waiting import BOUND_S, until

SCRIPT: dict[str, Any] = {
    "tools": [{"name": "t", "inputSchema": {"type": "object"}}],
    "capabilities": {"tools": {}, "resources": {"subscribe": True}},
    "resources": [{"uri": "memo:x", "name": "x"}, {"uri": "memo:y", "name": "y"}],
}


async def answer(session: LegacyWire, method: str, uri: str) -> Any:
    return messages(await session.post(f"resources/{method}", {"uri": uri}))[-1]


async def seen(session: LegacyWire) -> list[str]:
    """The methods that the server was sent, as far as they concern subscriptions."""
    told = (await session.call("t", {"do": "seen"}))["result"]["content"][0]["text"]
    return [method for method in json.loads(told) if method.endswith("subscribe")]


async def test_an_update_that_comes_with_the_answer_to_a_subscription_reaches_the_client(
    gateway: RunningGateway,
) -> None:
    gateway.configure({"updating": scripted(**SCRIPT, updates=True)})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session = await LegacyWire(http, gateway.url).open()
        assert (await answer(session, "subscribe", "memo:x"))["result"] == {}
        async with http.stream("GET", gateway.url, headers=session.headers) as stream:
            async for line in stream.aiter_lines():
                if "notifications/resources/updated" in line:
                    assert json.loads(line.removeprefix("data: "))["params"] == {"uri": "memo:x"}
                    break


async def test_a_subscription_that_the_server_refuses_is_an_error_for_it_alone(gateway: RunningGateway) -> None:
    gateway.configure({"refusing": scripted(**SCRIPT, refused=["memo:x"])})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session = await LegacyWire(http, gateway.url).open()
        assert (await answer(session, "subscribe", "memo:x"))["error"]["message"] == "no updates of memo:x"
        assert (await answer(session, "subscribe", "memo:y"))["result"] == {}


async def test_a_resource_that_is_subscribed_to_twice_at_once_is_so_once(gateway: RunningGateway, folder: Path) -> None:
    gate = folder / "gate"
    gateway.put_config({"scripted": scripted(**SCRIPT), "late": held_up({}, gate)})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        await until(lambda: gateway.status()["scripted"]["state"] == "ready")
        session = await LegacyWire(http, gateway.url).open()
        both = [asyncio.create_task(answer(session, "subscribe", "memo:unlisted")) for _ in range(2)]
        # The server that is late may be the one that lists it, so they wait for it.
        assert not (await asyncio.wait(both, timeout=0.2))[0]
        gate.touch()
        assert [(await each)["result"] for each in both] == [{}, {}]
        assert (await answer(session, "unsubscribe", "memo:unlisted"))["result"] == {}
        assert await seen(session) == ["resources/subscribe", "resources/unsubscribe"]


SOON_S = 0.05
"""What comes with the request is there before."""


def uris_of(connection: MemoryConnection) -> list[str]:
    return [message["params"]["uri"] for message in connection.sent if message["method"] == "resources/subscribe"]


async def test_a_refused_resource_keeps_no_other_from_being_subscribed_to_and_is_asked_for_again() -> None:
    refused = {"memo:a"}

    def answers(message: Message) -> Iterable[Message]:
        outcome = (
            {"error": {"code": -32602, "message": "no"}} if message["params"]["uri"] in refused else {"result": {}}
        )
        yield {"id": message["id"], **outcome}

    connection, wanted = MemoryConnection(answers), frozenset({"memo:a", "memo:b"})
    (error,) = (await connection.subscribe(wanted, BOUND_S)).items()
    assert (error[0], type(error[1])) == ("memo:a", RpcError)
    refused.clear()
    assert await connection.subscribe(wanted, BOUND_S) == {}
    assert await connection.subscribe(wanted, BOUND_S) == {}
    assert uris_of(connection) == ["memo:a", "memo:b", "memo:a"]


async def test_a_resource_whose_subscription_is_not_answered_keeps_no_other_from_being_subscribed_to() -> None:
    def answers(message: Message) -> Iterable[Message]:
        if message["method"] == "resources/subscribe" and message["params"]["uri"] != "memo:a":
            yield {"id": message["id"], "result": {}}

    connection, wanted = MemoryConnection(answers), frozenset({"memo:a", "memo:b"})
    (error,) = (await connection.subscribe(wanted, SOON_S)).items()
    assert (error[0], error[1].message) == (
        "memo:a",
        f"server 'memory' did not answer a subscription within {SOON_S} s",
    )
    assert await connection.subscribe(wanted, BOUND_S) == {}
    assert uris_of(connection) == ["memo:a", "memo:b"]


async def test_a_resource_refused_before_and_not_answered_for_now_fails_no_subscription_to_another() -> None:
    refused: dict[str, Any] = {"error": {"code": -32602, "message": "no updates of memo:a"}}
    outcomes: dict[str, Message] = {"memo:a": refused, "memo:b": {"result": {}}}
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}

    def answers(message: Message) -> Iterable[Message]:
        match message["method"]:
            case "resources/subscribe":
                if outcome := outcomes.get(message["params"]["uri"]):
                    yield {"id": message["id"], **outcome}
            case "initialize":
                yield {"id": message["id"], "result": hello}
            case _ if "id" in message:
                yield {"id": message["id"], "error": {"code": -32601, "message": "Method not found"}}

    connection, subscriptions = MemoryConnection(answers), {"memo:a": 1}
    server = Server(
        ServerDefinition("s", StdioTransport(("true",), {}), start_timeout_s=BOUND_S),
        connect=lambda transport, listener: connection,
        subscriptions=subscriptions,
        stderr=list,
        changed=lambda: None,
        on_notification=lambda server, method, params: None,
    )
    life = asyncio.create_task(server.run())
    try:
        async with asyncio.timeout(BOUND_S):
            await server.settled()
            assert uris_of(connection) == ["memo:a"]
            del outcomes["memo:a"]
            subscriptions["memo:b"] = 1
            assert list(await server.subscribe(SOON_S)) == ["memo:a"]
            assert uris_of(connection) == ["memo:a", "memo:a", "memo:b"]
    finally:
        await cancel_all([life])
