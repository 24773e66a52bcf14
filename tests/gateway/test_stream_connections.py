"""Connections over byte streams that end while somebody waits for them."""

import asyncio

import pytest
from sandgate_gateway.callers import GATEWAY
from sandgate_gateway.upstreams.connection import NotDeliveredError

from tests.gateway.memory_connection import Client, MemoryConnection
from tests.waiting import BOUND_S


async def test_a_request_that_waits_for_a_server_to_read_was_not_delivered_if_it_ends_first() -> None:
    connection = MemoryConnection()
    connection.pause_writing()
    waiting = asyncio.create_task(connection.request("tools/list", {}, GATEWAY))
    await asyncio.sleep(0)
    connection.ended("exited with code 1")
    with pytest.raises(NotDeliveredError, match="exited with code 1"):
        async with asyncio.timeout(BOUND_S):
            await waiting
    assert connection.sent == []


@pytest.mark.parametrize("is_answered", [True, False])
async def test_a_request_that_waits_for_its_log_level_was_not_delivered_if_the_server_ends_first(
    is_answered: bool,
) -> None:
    connection = MemoryConnection(capabilities={"logging": {}})
    waiting = asyncio.create_task(connection.request("tools/call", {}, Client(log_level="debug")))
    await asyncio.sleep(0)
    (set_level,) = connection.sent
    if is_answered:
        connection.say({"id": set_level["id"], "result": {}})
    connection.ended("exited with code 1")
    with pytest.raises(NotDeliveredError, match="exited with code 1"):
        async with asyncio.timeout(BOUND_S):
            await waiting
    assert connection.methods() == ["logging/setLevel"]
