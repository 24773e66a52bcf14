"""The official client of both eras, and what must reach a client unchanged."""

from typing import Any, Literal

import httpx
import pytest
from mcp import MCPError

from tests.gateway.running_gateway import RunningGateway, conformance, echo, scripted
from tests.gateway.wire import LegacyWire, messages, modern

ERAS: list[Literal["legacy", "auto"]] = ["legacy", "auto"]


@pytest.mark.parametrize("mode", ERAS)
async def test_the_tools_of_all_servers_are_listed_and_answer(gateway: RunningGateway, mode: Any) -> None:
    gateway.configure({"echo": echo(), "other": scripted(tools=[{"name": "other", "inputSchema": {"type": "object"}}])})
    async with gateway.client(mode) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert names == ["echo", "add", "whoami", "slow", "fail", "exit", "other"]
        assert (await client.call_tool("add", {"a": 2, "b": 3})).structured_content == {"result": 5}
        assert (await client.call_tool("fail", {})).is_error
        other = await client.call_tool("other", {})
        assert other.content[0].text.startswith("other done by")  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ERAS)
async def test_prompts_resources_templates_and_completion_pass(gateway: RunningGateway, mode: Any) -> None:
    gateway.configure({"fixture": conformance("both")})
    async with gateway.client(mode) as client:
        prompts = [prompt.name for prompt in (await client.list_prompts()).prompts]
        assert "test_prompt_with_arguments" in prompts
        assert (await client.get_prompt("test_simple_prompt")).messages
        assert "test://static-text" in [str(entry.uri) for entry in (await client.list_resources()).resources]
        assert (await client.read_resource("test://static-text")).contents
        templates = (await client.list_resource_templates()).resource_templates
        assert [template.uri_template for template in templates] == ["test://template/{id}/data"]
        read = await client.read_resource("test://template/12/data")
        assert str(read.contents[0].uri) == "test://template/12/data"


@pytest.mark.parametrize("mode", ERAS)
async def test_an_unknown_tool_is_an_error_that_names_it(gateway: RunningGateway, mode: Any) -> None:
    gateway.configure({"echo": echo()})
    async with gateway.client(mode) as client:
        with pytest.raises(MCPError, match="Unknown tool: nothing") as caught:
            await client.call_tool("nothing", {})
        assert caught.value.error.code == -32602


@pytest.mark.parametrize("mode", ERAS)
async def test_an_unknown_resource_is_an_error_that_names_it(gateway: RunningGateway, mode: Any) -> None:
    gateway.configure({"echo": echo(), "none": scripted()})
    async with gateway.client(mode) as client:
        with pytest.raises(MCPError) as caught:
            await client.read_resource("nowhere://at/all")
        assert caught.value.error.code == (-32002 if mode == "legacy" else -32602)
        assert caught.value.error.data == {"uri": "nowhere://at/all"}


@pytest.mark.parametrize("mode", ERAS)
async def test_a_large_result_arrives_whole(gateway: RunningGateway, mode: Any) -> None:
    gateway.configure({"echo": echo()})
    text = "0123456789abcdef" * 20_000
    async with gateway.client(mode) as client:
        assert (await client.call_tool("echo", {"text": text})).structured_content == {"result": text}


async def test_a_gateway_without_servers_answers_with_empty_lists(gateway: RunningGateway) -> None:
    gateway.configure({})
    async with gateway.client("legacy") as client:
        assert (await client.list_tools()).tools == []


STRANGE = {
    "content": [{"type": "hologram", "depth": 3, "x-vendor": None}, {"type": "text", "text": "x", "priority": 1}],
    "structuredContent": None,
    "isError": False,
    "_meta": {"vendor/key": [1.0, 2]},
    "x-vendor": {"deep": {"er": 12345678901234567890}},
}
TOOL = {
    "name": "strange",
    "inputSchema": {"type": "object", "$defs": {"a": {"$anchor": "x"}}, "x-vendor": True},
    "annotations": {"vendorHint": 1},
    "execution": {"taskSupport": "forbidden"},
    "x-vendor": {"a": 1},
}


async def test_unknown_fields_and_contents_reach_a_legacy_client_unchanged(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=[TOOL], results={"strange": STRANGE})})
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        assert (await session.post("tools/list")).json()["result"] == {"tools": [TOOL]}
        assert (await session.call("strange"))["result"] == STRANGE


async def test_unknown_fields_and_contents_reach_a_modern_client_unchanged(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=[TOOL], results={"strange": STRANGE})})
    async with httpx.AsyncClient(timeout=20) as http:
        listed = (await modern(http, gateway.url, "tools/list")).json()["result"]
        assert listed["tools"] == [TOOL]
        assert listed["resultType"] == "complete"
        assert (listed["ttlMs"], listed["cacheScope"]) == (0, "private")
        result = (await modern(http, gateway.url, "tools/call", {"name": "strange"})).json()["result"]
        assert result.pop("resultType") == "complete"
        assert result["_meta"].pop("io.modelcontextprotocol/serverInfo")["name"] == "sandgate"
        assert result == STRANGE


async def test_the_id_of_a_request_keeps_its_type(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=[TOOL])})
    async with httpx.AsyncClient(timeout=20) as http:
        for identifier in (0, 7, "7", "a-b"):
            answer = await modern(http, gateway.url, "tools/call", {"name": "strange"}, identifier=identifier)
            assert answer.json()["id"] == identifier
            assert type(answer.json()["id"]) is type(identifier)


async def test_a_tool_with_an_invalid_header_annotation_is_kept_from_modern_clients_only(
    gateway: RunningGateway,
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "number", "x-mcp-header": "A"}}}
    gateway.configure({"scripted": scripted(tools=[{"name": "bad", "inputSchema": schema}, TOOL])})
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        legacy = (await session.post("tools/list")).json()["result"]["tools"]
        assert [tool["name"] for tool in legacy] == ["bad", "strange"]
        modern_tools = (await modern(http, gateway.url, "tools/list")).json()["result"]["tools"]
        assert [tool["name"] for tool in modern_tools] == ["strange"]


async def test_instructions_are_told_under_the_name_of_their_server(gateway: RunningGateway) -> None:
    gateway.configure(
        {"a": scripted(instructions="Use me."), "b": scripted(), "c": scripted(instructions="x" * 20_000)}
    )
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        instructions = session.opened["instructions"]
        assert instructions.startswith("## a\nUse me.\n\n## c\nxxx")
        assert len(instructions) < 17_000
        discovered = (await modern(http, gateway.url, "server/discover")).json()["result"]
        assert discovered["instructions"] == instructions


async def test_only_what_the_servers_can_do_is_declared(gateway: RunningGateway) -> None:
    gateway.configure({"a": scripted(capabilities={"tools": {}, "prompts": {}, "experimental": {"x": {}}})})
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        assert session.opened["capabilities"] == {"tools": {"listChanged": True}, "prompts": {"listChanged": True}}


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_every_legacy_version_is_spoken(gateway: RunningGateway, version: str) -> None:
    gateway.configure({"scripted": scripted(tools=[TOOL])})
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url, version=version).open()
        assert session.opened["protocolVersion"] == version
        assert "result" in await session.call("strange")


@pytest.mark.parametrize("version", ["2026-07-28", "1999-01-01", "2024-10-07"])
async def test_an_unknown_version_is_answered_with_the_newest_legacy_one(gateway: RunningGateway, version: str) -> None:
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url, version=version).open()
        assert session.opened["protocolVersion"] == "2025-11-25"


async def test_ping_is_answered_by_the_gateway_in_the_legacy_era_only(gateway: RunningGateway) -> None:
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        assert messages(await session.post("ping"))[-1]["result"] == {}
        answer = await modern(http, gateway.url, "ping")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, -32601)
