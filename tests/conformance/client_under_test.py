"""What the suite's client scenarios run: a gateway in front of the suite's mock server, driven by the SDK's client.

The suite appends the mock server's address and names the scenario in the environment. What the suite then observes is
the gateway, as a client of the mock server.
"""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import mcp_types as types
from mcp.client.session import ClientRequestContext
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from tests.conformance.gateway import gateway_in_front_of, http_upstream
from tests.gateway.running_gateway import RunningGateway

Mode = Literal["auto", "legacy"]

CALL_S = 15.0


async def list_tools(gateway: RunningGateway, mode: Mode) -> None:
    async with gateway.client(mode) as client:
        await client.list_tools()


async def only_connect(gateway: RunningGateway, mode: Mode) -> None:
    async with gateway.client(mode):
        pass


async def add_numbers(gateway: RunningGateway, mode: Mode) -> None:
    async with gateway.client(mode) as client:
        await client.list_tools()
        await client.call_tool("add_numbers", {"a": 5, "b": 3})


async def accept_defaults(gateway: RunningGateway, mode: Mode) -> None:
    async def fill_in(_: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:
        assert isinstance(params, types.ElicitRequestFormParams)
        fields = params.requested_schema["properties"]
        return types.ElicitResult(action="accept", content={name: each["default"] for name, each in fields.items()})

    async with gateway.client(mode, elicitation_callback=fill_in) as client:
        await client.call_tool("test_client_elicitation_defaults", {})


async def reconnect(gateway: RunningGateway, mode: Mode) -> None:
    async with gateway.client(mode) as client:
        await client.call_tool("test_reconnection", {})


async def answer_input_requests(gateway: RunningGateway, mode: Mode) -> None:
    async def confirm(_: ClientRequestContext, __: types.ElicitRequestParams) -> types.ElicitResult:
        # Between two rounds of one call, another one that must not see anything of it.
        await client.call_tool("test_mrtr_unrelated", {})
        return types.ElicitResult(action="accept", content={"confirmed": True})

    async with gateway.client(mode, elicitation_callback=confirm) as client:
        for tool in ("test_mrtr_echo_state", "test_mrtr_no_state", "test_mrtr_no_result_type"):
            await client.call_tool(tool, {})


async def use_everything(gateway: RunningGateway, mode: Mode) -> None:
    async with gateway.client(mode) as client:
        for tool in (await client.list_tools()).tools:
            await client.call_tool(tool.name, {})
        for resource in (await client.list_resources()).resources:
            await client.read_resource(resource.uri)
        for prompt in (await client.list_prompts()).prompts:
            await client.get_prompt(prompt.name)


async def call_what_the_suite_asks_for(gateway: RunningGateway, mode: Mode) -> None:
    calls = json.loads(os.environ["MCP_CONFORMANCE_CONTEXT"])["toolCalls"]
    async with gateway.client(mode) as client:
        await client.list_tools()
        for call in calls:
            await client.call_tool(call["name"], call["arguments"])


async def call_every_listed_tool(gateway: RunningGateway, mode: Mode) -> None:
    async with gateway.client(mode) as client:
        for tool in (await client.list_tools()).tools:
            await client.call_tool(tool.name, dict.fromkeys(tool.input_schema.get("required", ()), "x"))


STEPS: dict[str, Callable[[RunningGateway, Mode], Awaitable[None]]] = {
    "initialize": list_tools,
    "tools_call": add_numbers,
    "elicitation-sep1034-client-defaults": accept_defaults,
    "sse-retry": reconnect,
    # The mock server has nothing to list or call; the gateway's own requests to it are what is looked at.
    "request-metadata": only_connect,
    "sep-2322-client-request-state": answer_input_requests,
    "http-standard-headers": use_everything,
    "http-custom-headers": call_what_the_suite_asks_for,
    "http-invalid-tool-headers": call_every_listed_tool,
    "json-schema-ref-no-deref": list_tools,
}


def downstream_mode(scenario: str, revision: str) -> Mode:
    if scenario == "http-invalid-tool-headers":
        # A legacy client does not know x-mcp-header, so leaving the invalid tools out is up to the gateway alone.
        return "legacy"
    return "legacy" if revision in HANDSHAKE_PROTOCOL_VERSIONS else "auto"


def main() -> None:
    scenario, revision = os.environ["MCP_CONFORMANCE_SCENARIO"], os.environ["MCP_CONFORMANCE_PROTOCOL_VERSION"]
    mode = downstream_mode(scenario, revision)

    async def take_steps(gateway: RunningGateway) -> None:
        async with asyncio.timeout(CALL_S):
            await STEPS[scenario](gateway, mode)

    with (
        tempfile.TemporaryDirectory() as folder,
        gateway_in_front_of(http_upstream(sys.argv[1]), Path(folder)) as gateway,
    ):
        asyncio.run(take_steps(gateway))


if __name__ == "__main__":
    main()
