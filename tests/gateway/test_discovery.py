"""Three tools instead of all."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from mcp import Client, MCPError
from sandgate_gateway.tool_search import ToolIndex, words

from tests.gateway.running_gateway import RunningGateway, bad, conformance, echo, scripted
from tests.gateway.wire import LegacyWire
from tests.waiting import BOUND_S

TOOLS = [
    {
        "name": "create_issue",
        "description": "Opens a new issue in a repository.",
        "inputSchema": {"type": "object", "properties": {"labels": {"type": "array"}}},
    },
    {"name": "list_issues", "description": "Lists issues.", "inputSchema": {"type": "object"}},
    {
        "name": "mergePullRequest",
        "description": "Merges a pull request. Issues that it closes are closed.",
        "inputSchema": {"type": "object"},
    },
]


def test_words_are_told_apart_however_they_are_joined() -> None:
    assert words("list_PullRequests HTTPServer v2 repositories") == [
        "list",
        "pull",
        "request",
        "http",
        "server",
        "v2",
        "repository",
    ]


def test_names_weigh_more_than_descriptions_and_rare_words_more_than_common_ones() -> None:
    index = ToolIndex([("a_file", "reads text"), ("b", "reads a file, any file"), ("c", "reads"), ("d", "reads reads")])
    assert index.search("file") == [0, 1]
    assert index.search("read any") == [1, 3, 2, 0]


def test_a_word_finds_longer_ones_that_start_with_it_after_its_own() -> None:
    index = ToolIndex([("repository_list", ""), ("repo_list", ""), ("other", "")])
    assert index.search("repo") == [1, 0]
    assert index.search("re") == []
    assert index.search("") == []


def test_an_empty_index_finds_nothing() -> None:
    assert ToolIndex([]).search("anything") == []


async def call(client: Client, name: str, **arguments: Any) -> Any:
    result = await client.call_tool(name, arguments)
    assert not result.is_error, result
    assert json.loads(result.content[0].text) == result.structured_content  # type: ignore[union-attr]
    return result.structured_content


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_only_the_tools_of_discovery_are_listed_and_they_lead_to_all_others(
    gateway: RunningGateway, mode: str
) -> None:
    gateway.configure({"hub": scripted(tools=TOOLS), "echo": echo()}, discovery=True)
    async with gateway.client(mode) as client:  # type: ignore[arg-type]
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == ["search_tools", "describe_tools", "call_tool"]
        assert all(tool.description and tool.input_schema["properties"] for tool in tools.values())
        found = await call(client, "search_tools", query="create issue")
        assert [tool["name"] for tool in found["tools"]] == ["create_issue", "list_issues", "mergePullRequest"]
        assert found["tools"][0] == {
            "name": "create_issue",
            "server": "hub",
            "description": "Opens a new issue in a repository.",
        }
        assert (await call(client, "search_tools", query="issue", limit=1))["matches"] == 3
        by_parameter = await call(client, "search_tools", query="labels")
        assert [tool["name"] for tool in by_parameter["tools"]] == ["create_issue"]
        described = await call(client, "describe_tools", names=["create_issue", "list_issues"])
        assert described == {"tools": TOOLS[:2]}
        result = await client.call_tool("call_tool", {"name": "echo", "arguments": {"text": "hello"}})
        assert result.structured_content == {"result": "hello"}


async def test_an_empty_search_tells_which_servers_there_are(gateway: RunningGateway) -> None:
    gateway.configure({"hub": scripted(tools=TOOLS), "echo": echo()}, discovery=True)
    async with gateway.client("legacy") as client:
        assert "Servers: hub, echo." in (client.instructions or "")
        assert await call(client, "search_tools", query="") == {
            "tools": [],
            "matches": 0,
            "servers": {"hub": 3, "echo": 6},
        }
        of_one = await call(client, "search_tools", query="", server="hub")
        assert [tool["name"] for tool in of_one["tools"]] == [tool["name"] for tool in TOOLS]
        assert (await call(client, "search_tools", query="issue", server="echo"))["tools"] == []


async def test_what_a_model_gets_wrong_is_answered_so_that_it_can_do_better(gateway: RunningGateway) -> None:
    gateway.configure({"hub": scripted(tools=TOOLS)}, discovery=True)
    async with gateway.client("legacy") as client:
        arguments: dict[str, Any]
        for name, arguments, hint in (
            ("describe_tools", {"names": ["create_isue"]}, "Did you mean create_issue"),
            ("describe_tools", {"names": ["zzzz"]}, "Find names with search_tools"),
            ("search_tools", {"query": "x", "server": "hubb"}, "There are: hub."),
        ):
            result = await client.call_tool(name, arguments)
            assert result.is_error
            assert hint in result.content[0].text  # type: ignore[union-attr]
        for name, arguments, problem in (
            ("search_tools", {"query": 1}, "query of search_tools must be a string"),
            ("search_tools", {"query": "x", "limit": 0}, "limit of search_tools must be"),
            ("describe_tools", {"names": []}, "names of describe_tools must be"),
            ("call_tool", {}, "call_tool needs the argument name"),
            ("call_tool", {"name": "list_issues", "arguments": []}, "arguments of call_tool must be an object"),
            ("call_tool", {"name": "call_tool"}, "call call_tool itself"),
            ("call_tool", {"name": "nothing"}, "Unknown tool: nothing"),
        ):
            with pytest.raises(MCPError, match=problem):
                await client.call_tool(name, arguments)


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_call_through_discovery_is_a_call(gateway: RunningGateway, mode: str) -> None:
    """Progress, the tool's own errors, questions to the client and cancellation."""
    gateway.configure({"echo": echo(), "dies": bad("dies")}, discovery=True)
    steps: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    async with gateway.client(mode) as client:  # type: ignore[arg-type]
        slow = {"name": "slow", "arguments": {"seconds": 0.2}}
        await client.call_tool("call_tool", slow, progress_callback=note)
        assert steps[-1] == 10
        failed = await client.call_tool("call_tool", {"name": "fail"})
        assert failed.is_error
        assert "this tool always fails" in failed.content[0].text  # type: ignore[union-attr]
        with pytest.raises(MCPError, match="server 'dies' exited with code 3"):
            await client.call_tool("call_tool", {"name": "ping_pong"})


async def test_a_call_through_discovery_can_be_cancelled(gateway: RunningGateway) -> None:
    gateway.configure({"s": scripted(tools=[{"name": "t", "inputSchema": {"type": "object"}}])}, discovery=True)
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        hanging = asyncio.create_task(session.call("call_tool", {"name": "t", "arguments": {"do": "hang"}}))
        await asyncio.sleep(0)  # its id is taken
        seen = {"name": "t", "arguments": {"do": "seen"}}
        while str(await session.call("call_tool", seen)).count("tools/call") < 2:
            pass
        await session.notify("notifications/cancelled", {"requestId": 2})
        cancelled = {"name": "t", "arguments": {"do": "cancelled"}}
        while "[]" in str(await session.call("call_tool", cancelled)):
            pass
        hanging.cancel()


async def test_a_server_can_ask_the_client_during_a_call_through_discovery(gateway: RunningGateway) -> None:
    gateway.configure({"s": conformance("legacy")}, discovery=True)

    async def answer(_: Any, params: Any) -> Any:
        from mcp_types import ElicitResult  # noqa: PLC0415

        return ElicitResult(action="accept", content={"username": "x", "email": "x@example.com"})

    async with gateway.client("auto", elicitation_callback=answer) as client:
        inner = {"name": "test_elicitation", "arguments": {"message": "who?"}}
        result = await client.call_tool("call_tool", inner)
        assert "accept" in str(result.content)


async def test_changes_of_tools_are_found_and_not_announced(gateway: RunningGateway) -> None:
    gateway.configure({"s": scripted(tools=[TOOLS[0]])}, discovery=True)
    async with gateway.client("legacy") as client:
        rename = {"name": "create_issue", "arguments": {"do": "rename", "tools": [TOOLS[1]]}}
        await client.call_tool("call_tool", rename)
        async with asyncio.timeout(BOUND_S):
            while (await call(client, "search_tools", query="list"))["matches"] != 1:
                await asyncio.sleep(0.02)
        assert len((await client.list_tools()).tools) == 3
