"""What a bad server does is told of that server alone, and its neighbours do not feel it."""

import asyncio
import statistics
import time
from typing import Any

import httpx
import psutil
import pytest
from sandgate_gateway.allowance import BURST, RATE, Allowance

from tests.gateway.running_gateway import RunningGateway, bad, echo, scripted
from tests.gateway.wire import LegacyWire, messages, modern, nested

BOUND_S = 40.0
MAX_GROWTH = 250 * 1024 * 1024
"""Bytes of the gateway's memory: several copies of the longest message, but not a flood."""


async def configure(gateway: RunningGateway, way: str) -> dict[str, Any]:
    servers = {"bad": bad(way), "echo": echo()}
    status = await asyncio.to_thread(gateway.configure, servers)
    assert status["echo"]["state"] == "ready"
    return status["bad"]  # type: ignore[no-any-return]


async def tools(gateway: RunningGateway) -> list[dict[str, Any]]:
    """All pages."""
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        while True:
            result = (await modern(http, gateway.url, "tools/list", cursor)).json()["result"]
            found += result["tools"]
            if "nextCursor" not in result:
                return found
            cursor = {"cursor": result["nextCursor"]}


async def neighbour_answers(session: LegacyWire) -> None:
    assert "hello" in str(await session.call("echo", {"text": "hello"}))


async def call(gateway: RunningGateway, tool: str = "ping_pong") -> dict[str, Any]:
    """The answer to one call of the bad server, while its neighbour has to answer all the time."""
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session, other = await LegacyWire(http, gateway.url).open(), await LegacyWire(http, gateway.url).open()
        answer = asyncio.create_task(session.call(tool))
        while not answer.done():
            await neighbour_answers(other)
        return await answer  # type: ignore[no-any-return]


async def test_a_server_that_prints_instead_of_answering_is_told_that_it_does(gateway: RunningGateway) -> None:
    gateway.put_config({"bad": bad("prints")}, start_timeout_s=7)
    status = (await asyncio.to_thread(gateway.status, BOUND_S))["bad"]
    assert status["state"] == "failed"
    assert status["message"].startswith("did not answer initialize within 7 s; it wrote ")
    assert "lines to stdout that are not JSON-RPC, the last one: 'received" in status["message"]


@pytest.mark.parametrize(
    "way", ["garbage", "deep_schema", "floods_stdout", "floods_stderr", "floods_changes", "answers_twice"]
)
async def test_calls_of_a_noisy_server_and_of_its_neighbour_are_answered(gateway: RunningGateway, way: str) -> None:
    assert (await configure(gateway, way))["state"] == "ready"
    before = psutil.Process(gateway.pid).memory_info().rss
    for _ in range(3):
        assert (await call(gateway))["result"]["content"] == [{"type": "text", "text": "pong"}]
    assert psutil.Process(gateway.pid).memory_info().rss - before < MAX_GROWTH
    assert len(gateway.log) < 100_000


@pytest.mark.parametrize("way", ["floods_stdout", "floods_stderr", "floods_requests", "floods_changes"])
async def test_a_flood_costs_the_gateway_a_part_of_a_core_at_most(gateway: RunningGateway, way: str) -> None:
    await configure(gateway, way)
    process = psutil.Process(gateway.pid)
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session = await LegacyWire(http, gateway.url).open()
        shares = []
        for _ in range(8):
            cpu, began = sum(process.cpu_times()[:2]), time.monotonic()
            while time.monotonic() - began < 0.5:
                await neighbour_answers(session)
                await asyncio.sleep(0.02)
            shares.append((sum(process.cpu_times()[:2]) - cpu) / (time.monotonic() - began))
    # The allowance at the beginning is spent at full speed; what comes later counts.
    assert statistics.median(shares[3:]) < 0.6, shares


async def test_ten_thousand_tools_are_listed_and_called(gateway: RunningGateway) -> None:
    status = await configure(gateway, "many_tools")
    assert (status["tools"], status["message"]) == (10_000, None)
    assert len(await tools(gateway)) == 10_006
    assert (await call(gateway, "tool_9999"))["result"]["content"][0]["text"] == "pong"


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("too_many_tools", "lists more than 10000 tools; the others are left out"),
        ("heavy_pages", "lists more tools than the gateway keeps; those after the first 4 are left out"),
        ("endless_pages", "lists more than 100 tools; the others are left out"),
        ("odd_names", "lists 'same' more than once among its tools; the first one counts"),
        ("deep_schema", "lists tools that are nested more than 240 deep; they are left out"),
        ("deep_tools", "could not list its tools: server 'bad' sent an answer of"),
    ],
)
async def test_lists_that_do_not_count_in_full_say_so(gateway: RunningGateway, way: str, message: str) -> None:
    status = await configure(gateway, way)
    assert status["state"] == "ready"
    assert message in status["message"]
    names = [tool["name"] for tool in await tools(gateway)]
    assert "echo" in names
    assert "deep" not in names


async def test_a_list_that_is_good_for_ever_is_good_for_a_day(gateway: RunningGateway) -> None:
    gateway.configure({"bad": bad("endless_ttl")})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        result = (await modern(http, gateway.url, "tools/list")).json()["result"]
    assert (result["ttlMs"], [tool["name"] for tool in result["tools"]]) == (24 * 3600 * 1000, ["ping_pong"])


async def test_odd_names_are_made_usable(gateway: RunningGateway) -> None:
    await configure(gateway, "odd_names")
    long, same = [tool for tool in await tools(gateway) if tool["name"][0] in "ns"][:2]
    assert len(long["name"]) == 64
    assert (same["name"], same["description"]) == ("same", "first")
    for tool in (long, same):
        assert (await call(gateway, tool["name"]))["result"]["content"][0]["text"] == "pong"


@pytest.mark.parametrize("way", ["large_schema", "cyclic_schema", "odd_types"])
async def test_schemas_pass_as_they_are(gateway: RunningGateway, way: str) -> None:
    assert (await configure(gateway, way))["state"] == "ready"
    (tool,) = [tool for tool in await tools(gateway) if tool["name"] == "ping_pong"]
    match way:
        case "large_schema":
            assert len(tool["inputSchema"]["description"]) == 5 * 1024 * 1024
        case "cyclic_schema":
            assert tool["inputSchema"]["$defs"]["b"] == {"$ref": "#/$defs/a"}
        case _:
            assert tool["inputSchema"] == [1]
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        answer = await modern(http, gateway.url, "tools/call", {"name": "ping_pong", "arguments": {"child": {}}})
    assert messages(answer)[-1]["result"]["content"][0]["text"] == "pong"
    assert (await call(gateway))["result"]["content"][0]["text"] == "pong"


async def test_capabilities_that_are_none_offer_nothing(gateway: RunningGateway) -> None:
    status = await configure(gateway, "no_capabilities")
    assert (status["state"], status["tools"]) == ("ready", 0)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("many_values", "server 'bad' sent an answer of 6291494 bytes that cannot be read as JSON"),
        ("long_line", "server 'bad' sent a message of more than 33554432 bytes"),
        ("broken_answer", "server 'bad' sent an answer of 46 bytes that cannot be read as JSON"),
        ("no_result", "server 'bad' sent an answer without a result"),
        ("dies", "server 'bad' exited with code 3"),
        ("closes_stdout", "server 'bad' closed its stdout"),
        ("closes_stdin", "server 'bad' closed its stdin"),
    ],
)
async def test_a_call_that_goes_wrong_tells_how(gateway: RunningGateway, way: str, message: str) -> None:
    await configure(gateway, way)
    before = psutil.Process(gateway.pid).memory_info().rss
    error = (await call(gateway))["error"]
    assert error["message"] == message
    assert error["data"] == {"server": "bad"}
    assert psutil.Process(gateway.pid).memory_info().rss - before < MAX_GROWTH


async def test_a_large_table_in_one_text_arrives_whole(gateway: RunningGateway) -> None:
    await configure(gateway, "many_commas")
    assert (await call(gateway))["result"]["content"][0]["text"] == '"a\\b",' * 2**20


async def test_an_answer_too_deep_to_be_translated_fails_its_call(gateway: RunningGateway) -> None:
    result = {"content": [], "structuredContent": nested(300), "_meta": {}}
    tool = {"name": "t", "inputSchema": {"type": "object"}}
    gateway.configure({"scripted": scripted(tools=[tool], results={"t": result})})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        as_it_came = await (await LegacyWire(http, gateway.url).open()).call("t")
        assert as_it_came["result"] == result
        answer = await modern(http, gateway.url, "tools/call", {"name": "t", "arguments": {}})
    error = messages(answer)[-1]["error"]
    assert error == {"code": -32603, "message": "the message is nested too deep to be passed on"}


@pytest.mark.parametrize("way", ["closes_stdout", "closes_stdin"])
async def test_a_server_that_cannot_be_talked_to_any_more_is_started_again(gateway: RunningGateway, way: str) -> None:
    await configure(gateway, way)
    assert "error" in await call(gateway)
    status = (await asyncio.to_thread(gateway.status, BOUND_S))["bad"]
    assert (status["state"], status["restarts"], status["tools"]) == ("ready", 1, 1)


async def test_answers_with_ids_nobody_used_are_passed_over(gateway: RunningGateway) -> None:
    await configure(gateway, "wrong_ids")
    assert (await call(gateway))["result"]["content"][0]["text"] == "pong"


@pytest.mark.parametrize("way", ["never_answers", "reads_nothing"])
async def test_calls_that_are_never_answered_do_not_hold_up_the_neighbours(gateway: RunningGateway, way: str) -> None:
    await configure(gateway, way)
    async with httpx.AsyncClient(timeout=BOUND_S, limits=httpx.Limits(max_connections=None)) as http:
        session, other = await LegacyWire(http, gateway.url).open(), await LegacyWire(http, gateway.url).open()
        if way == "reads_nothing":
            assert "result" in await session.call("ping_pong")
        waiting: list[asyncio.Task[Any]] = [
            asyncio.create_task(session.call("ping_pong", {"text": "x" * 100_000})) for _ in range(20)
        ]
        for _ in range(20):
            await neighbour_answers(other)
        assert not any(task.done() for task in waiting)
        await given_up(waiting)
        await neighbour_answers(other)


async def given_up(tasks: list["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def test_an_allowance_is_a_burst_and_then_a_rate() -> None:
    now = 0.0
    allowance = Allowance(lambda: now)
    assert allowance.spend(BURST) == 0
    assert allowance.spend(RATE) == 1
    now = 1.0
    assert allowance.spend(RATE // 2) == 0.5
    now = 1000.0
    assert allowance.spend(BURST) == 0
