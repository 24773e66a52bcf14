"""Servers that speak HTTP+SSE, the transport of 2024-11-05."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.running_gateway import RunningGateway, echo_over_http
from tests.gateway.sse_server import SseServer, sse_server
from tests.gateway.wire import LegacyWire
from tests.waiting import BOUND_S, until


def old(url: str, kind: str = "sse", **headers: str) -> dict[str, Any]:
    return {"type": kind, "url": url, "headers": headers, "allowPrivate": True}


async def configure(gateway: RunningGateway, servers: dict[str, Any]) -> dict[str, Any]:
    return await asyncio.to_thread(gateway.configure, servers)


@pytest.mark.parametrize("kind", ["sse", "http"])
@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_official_server_works_with_every_client(
    gateway: RunningGateway, folder: Path, mode: str, kind: str
) -> None:
    """With `http` the gateway finds out by itself what the server speaks."""
    steps: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    with echo_over_http(folder, old=True) as url:
        status = gateway.configure({"old": old(url, kind, Authorization="Bearer upstream-key")})
        assert (status["old"]["state"], status["old"]["message"]) == ("ready", None)
        async with gateway.client(mode) as client:  # type: ignore[arg-type]
            told = await client.call_tool("whoami", {})
            assert told.structured_content == {"result": "...-key (19 characters)"}
            text = "0123456789abcdef" * 20_000
            assert (await client.call_tool("echo", {"text": text})).structured_content == {"result": text}
            await client.call_tool("slow", {"seconds": 0.1}, progress_callback=note)
            assert steps[-1] == 10
            assert (await client.read_resource("echo://readme")).contents
        gateway.configure({})


async def test_the_handshake_is_in_order_and_every_message_carries_the_credentials(gateway: RunningGateway) -> None:
    async with sse_server() as server:
        status = await configure(gateway, {"old": old(server.url, Authorization="Bearer upstream-key")})
        assert status["old"]["tools"] == 1
        methods = [message["method"] for message in server.received]
        assert methods[:3] == ["initialize", "notifications/initialized", "tools/list"]
        assert set(server.headers) == {"Bearer upstream-key"}


async def test_a_call_that_meets_a_forgotten_session_is_made_again_in_a_new_one(gateway: RunningGateway) -> None:
    async with sse_server() as server, httpx.AsyncClient(timeout=BOUND_S) as http:
        await configure(gateway, {"old": old(server.url)})
        session = await LegacyWire(http, gateway.url).open()
        assert "pong of session 1" in str(await session.call("ping_pong"))
        server.forget_sessions()
        assert "pong of session 2" in str(await session.call("ping_pong"))
        assert server.initialized() == 2


async def test_a_stream_that_breaks_fails_the_calls_under_way_and_is_opened_again(gateway: RunningGateway) -> None:
    async with sse_server() as server, httpx.AsyncClient(timeout=BOUND_S) as http:
        await configure(gateway, {"old": old(server.url)})
        session = await LegacyWire(http, gateway.url).open()
        server.hanging = True
        call = asyncio.create_task(session.call("ping_pong"))
        await until(lambda: server.received[-1].get("method") == "tools/call")
        server.drop_streams()
        assert (await call)["error"]["message"] == "server 'old' closed its event stream"
        server.hanging = False
        assert "pong of session 2" in str(await session.call("ping_pong"))
        status = (await asyncio.to_thread(gateway.status))["old"]
        assert (status["state"], status["restarts"]) == ("ready", 1)


async def test_a_cancelled_call_is_cancelled_at_the_server(gateway: RunningGateway) -> None:
    async with sse_server() as server, httpx.AsyncClient(timeout=BOUND_S) as http:
        await configure(gateway, {"old": old(server.url)})
        server.hanging = True
        session = await LegacyWire(http, gateway.url).open()
        call = asyncio.create_task(session.call("ping_pong"))
        await until(lambda: server.received[-1].get("method") == "tools/call")
        identifier = server.received[-1]["id"]
        await session.notify("notifications/cancelled", {"requestId": 2})
        await until(lambda: server.received[-1].get("method") == "notifications/cancelled")
        assert server.received[-1]["params"]["requestId"] == identifier
        call.cancel()


async def test_the_session_ends_with_the_configuration(gateway: RunningGateway) -> None:
    async with sse_server() as server:
        await configure(gateway, {"old": old(server.url)})
        await configure(gateway, {})
        assert isinstance(server, SseServer)
        status = await configure(gateway, {"old": old(server.url)})
        assert status["old"]["state"] == "ready"
        assert server.sessions == 2
