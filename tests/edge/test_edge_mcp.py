"""The official MCP client through the edge, to a server of the official SDK at the gateway's port."""

from __future__ import annotations

import threading
from typing import Literal

import anyio
import pytest
from mcp import Client
from mcp.server.mcpserver import Context, MCPServer

from tests.edge.conftest import Front
from tests.waiting import until


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_tools_are_listed_and_called_and_a_call_can_be_cancelled(
    front: Front, mode: Literal["auto", "legacy"]
) -> None:
    begun, cancelled = threading.Event(), threading.Event()
    server = MCPServer("through the edge", log_level="WARNING")

    @server.tool()
    async def count(up_to: int, ctx: Context) -> int:
        for step in range(up_to):
            await ctx.report_progress(step + 1, up_to)
        return up_to

    @server.tool()
    async def hang() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    pod = front.sandbox(server.streamable_http_app(host="0.0.0.0"), port=50005)
    steps: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    async with Client(f"{front.url}/sandboxes/{pod.sandbox_id}/mcp", mode=mode) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["count", "hang"]
        result = await client.call_tool("count", {"up_to": 5}, progress_callback=on_progress)
        assert result.structured_content == {"result": 5}
        assert steps == [1, 2, 3, 4, 5]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "hang", {})
            await until(begun.is_set)
            assert not cancelled.is_set()
            tasks.cancel_scope.cancel()
        await until(cancelled.is_set)
