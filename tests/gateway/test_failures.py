"""What is told when the gateway itself fails: never nothing."""

import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from sandgate_gateway.aggregate import Aggregate
from sandgate_gateway.callers import Caller
from sandgate_gateway.configuration import ServerDefinition, StdioTransport, Transport, parse_configuration
from sandgate_gateway.downstream.calls import Calls
from sandgate_gateway.downstream.endpoint import McpEndpoint
from sandgate_gateway.downstream.fanout import Fanout
from sandgate_gateway.downstream.legacy import LegacyClients
from sandgate_gateway.downstream.modern import ModernClients
from sandgate_gateway.downstream.sessions import Sessions
from sandgate_gateway.downstream.subscriptions import Subscriptions
from sandgate_gateway.jsonrpc import Result
from sandgate_gateway.servers.server import Server
from sandgate_gateway.upstreams.connection import Connection, Listener

from tests.gateway.parts import empty_fleet
from tests.gateway.running_gateway import TOKEN
from tests.gateway.wire import LegacyWire, messages, modern

URL = "http://localhost/mcp"


class BrokenCalls(Calls):
    async def handle(self, method: str, params: dict[str, Any], caller: Caller) -> Result:
        raise ZeroDivisionError("nobody expected this")


def broken_endpoint(folder: Path) -> McpEndpoint:
    fleet = empty_fleet(folder)
    aggregate = Aggregate(fleet, b"key")
    calls = BrokenCalls(aggregate)
    subscriptions = Subscriptions(aggregate, fleet)
    sessions = Sessions(lambda session: subscriptions.forget(session.id))
    modern_clients = ModernClients(aggregate, calls, Fanout(aggregate, sessions), subscriptions)
    endpoint = McpEndpoint(LegacyClients(fleet, aggregate, calls, sessions, subscriptions), modern_clients)
    endpoint.configuration = parse_configuration({"tokens": [TOKEN], "servers": []})
    return endpoint


async def test_a_call_that_the_gateway_fails_to_answer_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transport = httpx.ASGITransport(app=broken_endpoint(tmp_path))
    with caplog.at_level(logging.ERROR):
        async with httpx.AsyncClient(transport=transport) as http:
            session = await LegacyWire(http, URL).open()
            answers = [await session.post("tools/list"), await modern(http, URL, "tools/list")]
    for answer in answers:
        error = messages(answer)[-1]["error"]
        assert error == {"code": -32603, "message": "the gateway failed to answer tools/list; its log tells why"}
    assert caplog.text.count("ZeroDivisionError: nobody expected this") == len(answers)


async def test_a_server_whose_life_the_gateway_ends_by_mistake_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    def connect(transport: Transport, listener: Listener) -> Connection:
        raise ZeroDivisionError("the key is hunter2-hunter2")

    server = Server(
        ServerDefinition("s", StdioTransport(("true",), {"KEY": "hunter2-hunter2"}), start_timeout_s=1),
        connect=connect,
        subscriptions={},
        stderr=list,
        changed=lambda: None,
        on_notification=lambda server, method, params: None,
    )
    with caplog.at_level(logging.ERROR):
        await server.run()
    await server.settled()
    assert server.status()["state"] == "failed"
    assert (
        server.status()["message"]
        == "failed in a way the gateway does not know (ZeroDivisionError); its log tells more"
    )
    assert "ZeroDivisionError: the key is ***" in caplog.text
    assert "hunter2" not in caplog.text
