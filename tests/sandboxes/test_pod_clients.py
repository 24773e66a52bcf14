"""Calls to a pod that does not listen yet, on real sockets."""

from __future__ import annotations

import asyncio

from app.sandboxes.pod_clients import AGENT_PORT, AgentClient, make_http_client
from tests.waiting import BOUND_S

_ADDRESS = "127.0.77.1"


async def test_an_agent_is_waited_for_until_it_listens() -> None:
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.read(4096)
        if head:  # a knock says nothing
            asked.append(head)
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with make_http_client() as http, asyncio.timeout(BOUND_S):
        agents = AgentClient(http)
        telling = asyncio.create_task(agents.init(_ADDRESS, "token", {"sandboxId": "i1"}))
        assert not await agents.is_healthy(_ADDRESS)  # as long as this takes, nobody listens
        assert not telling.done()
        server = await asyncio.start_server(answer, _ADDRESS, AGENT_PORT)
        async with server:
            await telling
    (head,) = asked
    assert head.startswith(b"POST /init ")
