"""Servers over HTTP: sessions, credentials, losses."""

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conformance.processes import first_line, running
from tests.gateway.misfit_http import MISFITS, misfit_over_http
from tests.gateway.running_gateway import RunningGateway, conformance_over_http, echo_over_http
from tests.gateway.wire import LegacyWire
from tests.ports import free_port


def remote(url: str, **headers: str) -> dict[str, object]:
    return {"type": "http", "url": url, "headers": headers, "allowPrivate": True}


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_remote_server_gets_the_configured_credential_and_not_the_clients(
    gateway: RunningGateway, folder: Path, mode: str
) -> None:
    with echo_over_http(folder) as url:
        gateway.configure({"remote": remote(url, Authorization="Bearer upstream-key")})
        async with gateway.client(mode) as client:  # type: ignore[arg-type]
            told = await client.call_tool("whoami", {})
            assert told.structured_content == {"result": "...-key (19 characters)"}


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_large_results_of_a_remote_server_arrive_whole(gateway: RunningGateway, folder: Path, mode: str) -> None:
    text = "0123456789abcdef" * 20_000
    with echo_over_http(folder) as url:
        gateway.configure({"remote": remote(url)})
        async with gateway.client(mode) as client:  # type: ignore[arg-type]
            assert (await client.call_tool("echo", {"text": text})).structured_content == {"result": text}


async def test_a_remote_server_that_was_restarted_is_used_again(gateway: RunningGateway, folder: Path) -> None:
    """Its sessions are gone then, which a legacy server tells with 404."""
    port = free_port()
    with conformance_on(port, folder):
        gateway.configure({"remote": remote(f"http://127.0.0.1:{port}/mcp")})
        async with httpx.AsyncClient(timeout=20) as http:
            session = await LegacyWire(http, gateway.url).open()
            assert "result" in await session.call("test_simple_text")
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        error = (await session.call("test_simple_text"))["error"]
        assert error["data"] == {"server": "remote"}
        assert "server 'remote'" in error["message"]
        with conformance_on(port, folder):
            gateway.status(20)
            assert "result" in await session.call("test_simple_text")


@contextmanager
def conformance_on(port: int, folder: Path) -> Iterator[None]:
    log = folder / "fixture.log"
    command = [sys.executable, "-m", "tests.fixtures.conformance_server", "--http", str(port), "--era", "legacy"]
    with running(command, log=log) as process:
        first_line(process, log)
        yield


@pytest.mark.parametrize("misfit", MISFITS)
async def test_a_remote_server_that_cannot_be_used_says_why(gateway: RunningGateway, misfit: str) -> None:
    async with misfit_over_http(misfit) as url:
        servers = {"remote": remote(url, Authorization="Bearer upstream-key")}
        status = await asyncio.to_thread(gateway.configure, servers, start_timeout_s=3)
    assert status["remote"]["state"] == "failed"
    assert MISFITS[misfit].message in status["remote"]["message"]
    assert "upstream-key" not in str(status)


async def test_a_remote_server_that_is_not_there_has_failed_when_its_time_is_over(gateway: RunningGateway) -> None:
    # Time enough for the gateway to load its HTTP client, which it does for the first remote server.
    status = gateway.configure({"remote": remote(f"http://127.0.0.1:{free_port()}/mcp")}, start_timeout_s=5)
    assert status["remote"]["message"] == "could not be reached: Connection refused"


@pytest.mark.parametrize("host", ["example..com", "a" * 64 + ".com"])
async def test_a_remote_server_with_an_impossible_name_has_failed(gateway: RunningGateway, host: str) -> None:
    status = gateway.configure({"remote": remote(f"https://{host}/mcp")})
    assert status["remote"]["state"] == "failed"
    assert status["remote"]["message"] == "has a URL with a host name that is not valid"


async def test_a_remote_server_with_an_unknown_name_says_so_in_the_resolvers_words(gateway: RunningGateway) -> None:
    with pytest.raises(socket.gaierror) as caught:
        socket.getaddrinfo("nowhere.invalid", 80)
    status = gateway.configure({"remote": remote("http://nowhere.invalid/mcp")}, start_timeout_s=10)
    # A resolver that is busy says so, this time or the other.
    words = {caught.value.strerror, "Name or service not known", "Temporary failure in name resolution"}
    assert status["remote"]["message"] in {f"could not be reached: {each}" for each in words}


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_changed_list_of_a_remote_server_is_seen_at_once(
    gateway: RunningGateway, folder: Path, era: str
) -> None:
    """The fixture has a tool that adds another tool, or takes it away."""
    with conformance_over_http(folder, era) as server:
        gateway.configure({"remote": server})
        async with httpx.AsyncClient(timeout=20) as http:
            session = await LegacyWire(http, gateway.url).open()
            async with http.stream("GET", gateway.url, headers=session.headers) as stream:
                before = (await session.post("tools/list")).json()["result"]["tools"]
                assert "result" in await session.call("test_trigger_tool_change")
                # The gateway's own first look at the list may be announced before the change is.
                async for line in stream.aiter_lines():
                    if "notifications/tools/list_changed" in line:
                        after = (await session.post("tools/list")).json()["result"]["tools"]
                        if len(after) != len(before):
                            break
    assert len(after) == len(before) + 1
