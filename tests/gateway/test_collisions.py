"""Servers with the same names and URIs, seen through real clients."""

import json
from typing import Any

import httpx

from tests.gateway.running_gateway import RunningGateway, conformance, echo, scripted
from tests.gateway.wire import LegacyWire, modern

MEMO = [{"uri": "memo:one", "name": "one"}]
FULL: dict[str, Any] = {"tools": {}, "prompts": {}, "resources": {"subscribe": True}}
PROMPT = [{"name": "ask"}]
TOOLS = [{"name": "run", "inputSchema": {"type": "object"}, "_meta": {"ui": {"resourceUri": "ui://panel"}}}]
UI = {"uri": "ui://panel", "name": "panel"}
LINK = {"content": [{"type": "resource_link", "uri": "memo:one", "name": "one"}]}


def twin(label: str, **more: Any) -> dict[str, Any]:
    return scripted(
        label=label,
        capabilities=FULL,
        tools=TOOLS,
        prompts=PROMPT,
        resources=[*MEMO, UI],
        results={"run": LINK},
        **more,
    )


async def test_colliding_tools_and_prompts_are_prefixed_and_unique_ones_stay(gateway: RunningGateway) -> None:
    gateway.configure({"a": twin("A"), "github/o/r": twin("B"), "echo": echo()})
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        tools = [tool["name"] for tool in (await session.post("tools/list")).json()["result"]["tools"]]
        assert tools[:4] == ["a_run", "github_o_r_run", "echo", "add"]
        prompts = [prompt["name"] for prompt in (await session.post("prompts/list")).json()["result"]["prompts"]]
        assert prompts == ["a_ask", "github_o_r_ask", "greet"]
        assert "result" in await session.call("github_o_r_run")
        assert (await session.call("run"))["error"]["code"] == -32602


async def test_naming_always_prefixes_everything(gateway: RunningGateway) -> None:
    gateway.configure({"a": scripted(tools=TOOLS), "b": scripted()}, naming="always")
    async with httpx.AsyncClient(timeout=20) as http:
        answer = await modern(http, gateway.url, "tools/list")
        assert [tool["name"] for tool in answer.json()["result"]["tools"]] == ["a_run"]
        assert (await modern(http, gateway.url, "tools/call", {"name": "a_run"})).json()["result"]["content"]


async def test_colliding_resources_of_both_servers_can_be_read_and_say_where_they_are_from(
    gateway: RunningGateway,
) -> None:
    gateway.configure({"a": twin("A"), "b": twin("B")})
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        uris = [entry["uri"] for entry in (await session.post("resources/list")).json()["result"]["resources"]]
        assert uris == ["memo:a/one", "ui://a/panel", "memo:b/one", "ui://b/panel"]
        read = (await session.post("resources/read", {"uri": "memo:b/one"})).json()["result"]["contents"]
        assert read == [{"uri": "memo:b/one", "text": "B of memo:one"}]


async def test_links_in_results_lead_to_the_server_that_gave_them(gateway: RunningGateway) -> None:
    gateway.configure({"a": twin("A"), "b": twin("B")})
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        assert (await session.call("b_run"))["result"]["content"][0]["uri"] == "memo:b/one"
        prompt = (await session.post("prompts/get", {"name": "a_ask"})).json()["result"]["messages"][0]
        assert prompt["content"]["uri"] == "memo:a/one"
        tools = (await session.post("tools/list")).json()["result"]["tools"]
        assert tools[1]["_meta"]["ui"]["resourceUri"] == "ui://b/panel"


async def test_updates_of_a_colliding_resource_carry_its_exposed_uri(gateway: RunningGateway) -> None:
    gateway.configure({"a": twin("A"), "b": twin("B")})
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        assert (await session.post("resources/subscribe", {"uri": "memo:b/one"})).json()["result"] == {}
        async with http.stream("GET", gateway.url, headers=session.headers) as stream:
            for name in ("a_run", "b_run"):
                await session.call(name, {"do": "update", "uri": "memo:one"})
            async for line in stream.aiter_lines():
                if line.startswith("data: ") and "resources/updated" in line:
                    assert json.loads(line[6:])["params"] == {"uri": "memo:b/one"}
                    break


async def test_two_whole_servers_of_the_same_kind_work_side_by_side(gateway: RunningGateway) -> None:
    gateway.configure({"x": conformance("both"), "y": conformance("both")})
    async with gateway.client() as client:
        assert (await client.get_prompt("y_test_simple_prompt")).messages
        templates = (await client.list_resource_templates()).resource_templates
        assert [t.uri_template for t in templates] == ["test://x/template/{id}/data", "test://y/template/{id}/data"]
        read = await client.read_resource("test://y/template/5/data")
        assert str(read.contents[0].uri) == "test://y/template/5/data"
        assert (await client.call_tool("x_test_simple_text", {})).content
