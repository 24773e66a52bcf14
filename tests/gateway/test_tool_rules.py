"""Which tools of a server a sandbox has: rules by themselves, and as the gateway keeps to them."""

import httpx
import pytest
from mcp import MCPError
from sandgate_gateway.tool_rules import ToolRules

from tests.gateway.running_gateway import RunningGateway, echo, scripted
from tests.gateway.wire import LegacyWire


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (ToolRules(), {"read_file", "read_all", "write_file", "Read_x"}),
        (ToolRules(allow=("read_*",)), {"read_file", "read_all"}),
        (ToolRules(allow=("read_*", "write_????")), {"read_file", "read_all", "write_file"}),
        (ToolRules(allow=("read_*",), deny=("*_all",)), {"read_file"}),
        (ToolRules(deny=("[rR]ead_*",)), {"write_file"}),
        (ToolRules(allow=()), set()),
        (ToolRules(allow=("read_file",), rename={"read_file": "write_file"}), {"read_file"}),
    ],
)
def test_globs_decide_by_the_servers_own_names(rules: ToolRules, expected: set[str]) -> None:
    assert {name for name in ("read_file", "read_all", "write_file", "Read_x") if rules.has(name)} == expected


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_hidden_tool_is_not_listed_and_cannot_be_called(gateway: RunningGateway, mode: str) -> None:
    gateway.configure({"echo": {"transport": echo(), "tools": {"allow": ["e*", "add"], "deny": ["exit"]}}})
    async with gateway.client(mode) as client:  # type: ignore[arg-type]
        assert {tool.name for tool in (await client.list_tools()).tools} == {"echo", "add"}
        for name in ("exit", "echo_exit", "whoami"):
            with pytest.raises(MCPError, match=f"Tool '{name}' of server 'echo' is not allowed in this sandbox"):
                await client.call_tool(name, {"code": 1})
        assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
    assert gateway.status()["echo"]["state"] == "ready"


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_renamed_tool_is_called_by_its_new_name_only(gateway: RunningGateway, mode: str) -> None:
    rules = {"allow": ["echo"], "rename": {"echo": "say/it"}, "describe": {"echo": "Says it."}}
    gateway.configure({"echo": {"transport": echo(), "tools": rules}})
    async with gateway.client(mode) as client:  # type: ignore[arg-type]
        (tool,) = (await client.list_tools()).tools
        assert (tool.name, tool.description) == ("say_it", "Says it.")
        assert (await client.call_tool("say_it", {"text": "x"})).structured_content == {"result": "x"}
        with pytest.raises(MCPError, match="Unknown tool: echo"):
            await client.call_tool("echo", {"text": "x"})


async def test_a_new_name_that_is_taken_is_told_apart_like_any_other(gateway: RunningGateway) -> None:
    tools = [{"name": name, "inputSchema": {"type": "object"}} for name in ("one", "two")]
    gateway.configure(
        {
            "a": {"transport": scripted(tools=tools), "tools": {"rename": {"one": "two"}}},
            "b": {"transport": scripted(tools=tools), "tools": {"rename": {"one": "uno"}, "deny": ["two"]}},
        }
    )
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        names = [tool["name"] for tool in (await session.post("tools/list")).json()["result"]["tools"]]
        assert len(set(names)) == 3
        assert names[2] == "uno"
        done = [str(await session.call(name)) for name in names]
        assert ["one done" in done[0], "two done" in done[1], "one done" in done[2]] == [True] * 3


async def test_rules_that_change_are_announced(gateway: RunningGateway) -> None:
    gateway.configure({"echo": echo()})
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        async with http.stream("GET", gateway.url, headers=session.headers) as stream:
            gateway.put_config({"echo": {"transport": echo(), "tools": {"deny": ["exit"]}}})
            async for line in stream.aiter_lines():
                if "notifications/tools/list_changed" in line:
                    break
