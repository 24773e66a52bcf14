"""What servers ask of clients and tell them in mid-call, in all four combinations of eras."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from mcp import MCPError
from mcp.client import ClientRequestContext
from mcp_types import (
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestParams,
    ElicitResult,
    ListRootsResult,
    LoggingMessageNotificationParams,
    Root,
    TextContent,
)

from tests.gateway.running_gateway import RunningGateway, conformance, conformance_over_http, echo, scripted
from tests.gateway.wire import LegacyWire, messages, modern, modern_request
from tests.waiting import BOUND_S, until

QUADRANTS = pytest.mark.parametrize(
    ("client_mode", "server_era"),
    [("legacy", "legacy"), ("legacy", "modern"), ("auto", "legacy"), ("auto", "modern")],
)
TRANSPORTS = pytest.mark.parametrize("transport", ["stdio", "http"])
TOOL = [{"name": "t", "inputSchema": {"type": "object"}}, {"name": "u", "inputSchema": {"type": "object"}}]
FULL: dict[str, Any] = {"tools": {}, "logging": {}, "resources": {"subscribe": True}}

Mode = Literal["legacy", "auto"]


async def answer_elicitation(_: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    return ElicitResult(action="accept", content={"username": "ada", "email": "ada@example.com", "name": "ada"})


async def answer_sampling(_: ClientRequestContext, params: CreateMessageRequestParams) -> CreateMessageResult:
    return CreateMessageResult(role="assistant", model="test-model", content=TextContent(type="text", text="sampled"))


async def answer_roots(_: ClientRequestContext) -> ListRootsResult:
    return ListRootsResult(roots=[Root(uri="file:///home/user", name="home")])


def configure(gateway: RunningGateway, stack: AsyncExitStack, folder: Path, transport: str, era: str) -> None:
    over_http = transport == "http"
    server = stack.enter_context(conformance_over_http(folder, era)) if over_http else conformance(era)
    assert gateway.configure({"fixture": server})["fixture"]["state"] == "ready"


@QUADRANTS
@TRANSPORTS
async def test_a_server_can_ask_the_client_in_mid_call(
    gateway: RunningGateway, folder: Path, client_mode: Mode, server_era: str, transport: str
) -> None:
    async with AsyncExitStack() as stack:
        configure(gateway, stack, folder, transport, server_era)
        client = await stack.enter_async_context(
            gateway.client(
                client_mode,
                elicitation_callback=answer_elicitation,
                sampling_callback=answer_sampling,
                list_roots_callback=answer_roots,
            )
        )
        elicited = await client.call_tool("test_elicitation", {"message": "Who are you?"})
        assert "ada@example.com" in elicited.content[0].text  # type: ignore[union-attr]
        sampled = await client.call_tool("test_sampling", {"prompt": "Say something"})
        assert "sampled" in sampled.content[0].text  # type: ignore[union-attr]


@QUADRANTS
@TRANSPORTS
async def test_progress_and_logs_reach_the_caller(
    gateway: RunningGateway, folder: Path, client_mode: Mode, server_era: str, transport: str
) -> None:
    values: list[float] = []
    logs: list[Any] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        values.append(progress)

    async def on_log(params: LoggingMessageNotificationParams) -> None:
        logs.append(params.data)

    async with AsyncExitStack() as stack:
        configure(gateway, stack, folder, transport, server_era)
        client = await stack.enter_async_context(
            gateway.client(
                client_mode, logging_callback=on_log, **({"log_level": "info"} if client_mode == "auto" else {})
            )
        )
        await client.call_tool("test_tool_with_progress", {}, progress_callback=on_progress)
        assert values == [0, 50, 100]
        await client.call_tool("test_tool_with_logging", {})
        await until(lambda: len(logs) == 3)


async def test_a_call_whose_server_is_replaced_after_a_question_fails_and_is_not_begun_anew(
    gateway: RunningGateway,
) -> None:
    questions = []

    async def have_it_replaced(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        questions.append(params.message)
        server = conformance("modern")
        gateway.configure({"fixture": {**server, "env": {**server["env"], "ANOTHER": str(len(questions))}}})
        return await answer_elicitation(context, params)

    gateway.configure({"fixture": conformance("modern")})
    async with gateway.client("legacy", elicitation_callback=have_it_replaced) as client:
        with pytest.raises(MCPError, match="server 'fixture' was stopped"):
            await client.call_tool("test_elicitation", {"message": "Who are you?"})
    assert questions == ["Who are you?"]


@pytest.mark.parametrize("client_mode", ["legacy", "auto"])
async def test_a_question_the_client_cannot_answer_is_refused(gateway: RunningGateway, client_mode: Mode) -> None:
    gateway.configure({"fixture": conformance("legacy")})
    async with gateway.client(client_mode) as client:
        with pytest.raises(MCPError) as caught:
            await client.call_tool("test_elicitation", {"message": "Who?"})
        if client_mode == "legacy":
            assert caught.value.error.code == -32600  # what the server makes of the refusal is the server's business
        else:
            assert caught.value.error.code == -32021
            assert caught.value.error.data == {"requiredCapabilities": {"elicitation": {}}}


async def asks(http: httpx.AsyncClient, gateway: RunningGateway, capabilities: Any) -> LegacyWire:
    return await LegacyWire(http, gateway.url).open(capabilities)


async def test_a_question_that_could_be_for_a_client_that_cannot_answer_is_not_shown_to_one_that_can(
    gateway: RunningGateway,
) -> None:
    gateway.configure({"scripted": scripted(tools=TOOL, capabilities=FULL)})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        able, unable = await asks(http, gateway, {"elicitation": {}}), await asks(http, gateway, {})
        refusal, waited = await asked_while_another_waits(asking=unable, waiting=able)
        assert refusal["code"] == -32600
        assert "released" in waited["result"]["content"][0]["text"]


async def test_what_a_cancelled_call_asks_or_logs_reaches_no_other_client(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=TOOL, capabilities=FULL)})
    question = {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": {}}}
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        first, second = await asks(http, gateway, {"elicitation": {}}), await asks(http, gateway, {"elicitation": {}})
        params = {
            "name": "t",
            "arguments": {"do": "goes_on", "log": {"level": "error", "data": "secret"}, "ask": question},
        }
        body = {"id": "c", "method": "tools/call", "params": params}
        async with asyncio.TaskGroup() as group:
            cancelled = group.create_task(first.send(body))
            await until_in_flight(second)
            await first.notify("notifications/cancelled", {"requestId": "c"})
            told = messages(await second.post("tools/call", {"name": "t", "arguments": {"do": "go_on"}}))
        assert messages(cancelled.result()) == []
        (answer,) = told
        assert json.loads(answer["result"]["content"][0]["text"])["code"] == -32600
        # The cancelled call is answered at last: it counts no more.
        assert "result" in await second.call("t", {"do": "release"})
        log = {"name": "t", "arguments": {"do": "log", "level": "error", "data": "loud"}}
        assert len(messages(await second.post("tools/call", log))) == 2


async def test_a_question_that_could_be_for_two_clients_is_answered_with_an_error(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=TOOL, capabilities=FULL)})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        first = await asks(http, gateway, {"elicitation": {}})
        second = await asks(http, gateway, {"elicitation": {}})
        refusal, waited = await asked_while_another_waits(asking=second, waiting=first)
        assert refusal["code"] == -32600
        assert "2 clients have calls in progress" in refusal["message"]
        assert "result" in waited


async def asked_while_another_waits(
    *, asking: LegacyWire, waiting: LegacyWire
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the tool of one client is answered that asks while another client has a call in flight, and that call's
    answer."""
    async with asyncio.TaskGroup() as group:
        waits = group.create_task(waiting.call("t", {"do": "wait"}))
        await until_in_flight(asking)
        answer = await asking.call("t", {"do": "ask", "method": "elicitation/create"})
        await asking.call("t", {"do": "release"})
    return json.loads(answer["result"]["content"][0]["text"]), waits.result()


@pytest.mark.parametrize("way", ["cancels", "leaves"])
async def test_a_question_to_a_client_that_does_not_wait_for_its_call_any_more_is_answered_with_an_error(
    gateway: RunningGateway, way: str
) -> None:
    gateway.configure({"scripted": scripted(tools=TOOL)})
    question = {"do": "ask", "method": "elicitation/create", "params": {"message": "?", "requestedSchema": {}}}
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        asked, other = await asks(http, gateway, {"elicitation": {}}), await asks(http, gateway, {})
        call = {"jsonrpc": "2.0", "id": "c", "method": "tools/call", "params": {"name": "t", "arguments": question}}
        async with http.stream("POST", gateway.url, headers=asked.headers, json=call) as stream:
            assert (await anext(events(stream)))["method"] == "elicitation/create"
            if way == "cancels":
                await asked.notify("notifications/cancelled", {"requestId": "c"})
            else:
                await http.delete(gateway.url, headers=asked.headers)
            async with asyncio.timeout(BOUND_S):
                while not (answers := await listed_by(other, "answers")):
                    await asyncio.sleep(0.01)
        assert [answer["message"] for answer in answers] == ["the call that this belongs to is over"]


async def until_in_flight(session: LegacyWire) -> None:
    """Until the server has got the waiting call: it handles messages in order, so two calls to it are enough."""
    for _ in range(2):
        await session.call("t", {"do": "seen"})


async def test_progress_reaches_the_call_it_belongs_to_with_the_token_it_gave(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=TOOL)})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        one, two = [await LegacyWire(http, gateway.url).open() for _ in range(2)]
        three = await LegacyWire(http, gateway.url).open()

        async def call(session: LegacyWire, token: Any) -> list[Any]:
            params = {"name": "t", "arguments": {"do": "wait"}, "_meta": {"progressToken": token}}
            return messages(await session.post("tools/call", params))

        async with asyncio.TaskGroup() as group:
            calls = {token: group.create_task(call(session, token)) for session, token in ((one, "x"), (two, 1))}
            for _ in range(5):
                await until_in_flight(three)
            await three.call("t", {"do": "release"})
        for token, task in calls.items():
            progress, answer = task.result()
            assert progress["params"]["progressToken"] == token
            assert progress["params"]["message"].removeprefix("call") == answer["result"]["content"][0]["text"][8:]


async def test_a_log_message_of_a_shared_server_is_for_the_one_client_that_calls_it(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=TOOL, capabilities=FULL)})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        one, two = [await LegacyWire(http, gateway.url).open() for _ in range(2)]
        await one.post("logging/setLevel", {"level": "warning"})
        log = {"name": "t", "arguments": {"do": "log", "level": "info", "data": "quiet"}}
        assert len(messages(await one.post("tools/call", log))) == 1
        log["arguments"] = {"do": "log", "level": "error", "data": "loud"}
        told, _ = messages(await one.post("tools/call", log))
        assert told == {
            "jsonrpc": "2.0",
            "method": "notifications/message",
            "params": {"level": "error", "data": "loud"},
        }
        assert len(messages(await two.post("tools/call", log))) == 2


async def test_a_modern_client_gets_log_messages_only_if_it_asks_for_them(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=TOOL, capabilities=FULL)})
    call = {"name": "t", "arguments": {"do": "log", "level": "error", "data": "loud"}}
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        assert len(messages(await modern(http, gateway.url, "tools/call", call))) == 1
        level = {"io.modelcontextprotocol/logLevel": "info"}
        assert len(messages(await modern(http, gateway.url, "tools/call", call, **level))) == 2


async def cancelled_requests(session: LegacyWire) -> list[Any]:
    return await listed_by(session, "cancelled")


async def listed_by(session: LegacyWire, what: str) -> list[Any]:
    answer = await session.call("t", {"do": what})
    listed: list[Any] = json.loads(answer["result"]["content"][0]["text"])
    return listed


async def test_a_cancelled_call_is_cancelled_at_the_server_and_not_answered(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=TOOL)})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session = await LegacyWire(http, gateway.url).open()
        other = await LegacyWire(http, gateway.url).open()
        body = {
            "jsonrpc": "2.0",
            "id": "c",
            "method": "tools/call",
            "params": {"name": "t", "arguments": {"do": "hang"}},
        }
        async with asyncio.TaskGroup() as group:
            hanging = group.create_task(http.post(session.url, headers=session.headers, json=body))
            await until_in_flight(other)
            await other.notify("notifications/cancelled", {"requestId": "c"})
            assert await cancelled_requests(other) == []
            await session.notify("notifications/cancelled", {"requestId": "c"})
        assert messages(hanging.result()) == []
        assert len(await cancelled_requests(other)) == 1


async def test_a_modern_client_cancels_by_hanging_up_and_a_legacy_one_does_not(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=TOOL)})
    call = {"name": "t", "arguments": {"do": "hang"}}
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        observer = await LegacyWire(http, gateway.url).open()
        legacy = await LegacyWire(http, gateway.url).open()
        for work in (legacy.post("tools/call", call), modern(http, gateway.url, "tools/call", call)):
            task = asyncio.create_task(work)
            for _ in range(5):
                await until_in_flight(observer)
            task.cancel()
            await asyncio.wait((task,))
        async with asyncio.timeout(BOUND_S):
            while not (cancelled := await cancelled_requests(observer)):
                await asyncio.sleep(0.01)
        assert len(cancelled) == 1


async def test_a_changed_list_is_announced_to_clients_of_both_eras(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=TOOL), "other": echo()})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session = await LegacyWire(http, gateway.url).open()
        wanted = {"notifications": {"toolsListChanged": True, "promptsListChanged": True}}
        async with AsyncExitStack() as stack:
            headers, body = modern_request("subscriptions/listen", wanted, identifier="L")
            listen = await stack.enter_async_context(http.stream("POST", gateway.url, headers=headers, json=body))
            get = await stack.enter_async_context(http.stream("GET", gateway.url, headers=session.headers))
            modern_lines, legacy_lines = events(listen), events(get)
            acknowledged = await anext(modern_lines)
            assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
            assert acknowledged["params"] == {**wanted, "_meta": {"io.modelcontextprotocol/subscriptionId": "L"}}
            renamed = [{"name": "renamed", "inputSchema": {"type": "object"}}]
            await session.call("t", {"do": "rename", "tools": renamed})
            assert await anext(legacy_lines) == {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
            told = await anext(modern_lines)
            assert told["method"] == "notifications/tools/list_changed"
            assert told["params"]["_meta"] == {"io.modelcontextprotocol/subscriptionId": "L"}
            names = [tool["name"] for tool in (await session.post("tools/list")).json()["result"]["tools"]]
            assert names[0] == "renamed"


async def events(response: httpx.Response) -> Any:
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line[6:]:
            yield json.loads(line[6:])


async def test_updates_of_a_resource_reach_its_subscribers_only(gateway: RunningGateway) -> None:
    resources = [{"uri": "memo:x", "name": "x"}, {"uri": "memo:y", "name": "y"}]
    server = scripted(tools=TOOL, capabilities=FULL, resources=resources)
    gateway.configure({"scripted": server})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session = await LegacyWire(http, gateway.url).open()
        assert (await session.post("resources/subscribe", {"uri": "memo:x"})).json()["result"] == {}
        async with http.stream("GET", gateway.url, headers=session.headers) as get:
            lines = events(get)
            for uri in ("memo:y", "memo:x"):
                await session.call("t", {"do": "update", "uri": uri})
            # Changes of lists may be announced in between.
            updates = (event async for event in lines if event["method"] == "notifications/resources/updated")
            assert (await anext(updates))["params"] == {"uri": "memo:x"}
            await session.post("resources/unsubscribe", {"uri": "memo:x"})
            seen = json.loads((await session.call("t", {"do": "seen"}))["result"]["content"][0]["text"])
            assert [method for method in seen if "subscribe" in method] == [
                "resources/subscribe",
                "resources/unsubscribe",
            ]


@pytest.mark.parametrize("is_away_between", [False, True])
async def test_a_subscription_goes_on_at_a_server_that_is_configured_anew(
    gateway: RunningGateway, is_away_between: bool
) -> None:
    resources = [{"uri": "memo:x", "name": "x"}]
    server = scripted(tools=TOOL, capabilities=FULL, resources=resources)
    gateway.configure({"scripted": server})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session = await LegacyWire(http, gateway.url).open()
        assert (await session.post("resources/subscribe", {"uri": "memo:x"})).json()["result"] == {}
        if is_away_between:
            gateway.configure({})
        changed = {**server, "env": {**server["env"], "CHANGED": "1"}}
        assert gateway.configure({"scripted": changed})["scripted"]["state"] == "ready"
        assert (await session.post("resources/subscribe", {"uri": "memo:x"})).json()["result"] == {}
        seen = json.loads((await session.call("t", {"do": "seen"}))["result"]["content"][0]["text"])
        assert seen.count("resources/subscribe") == 1
        async with http.stream("GET", gateway.url, headers=session.headers) as get:
            await session.call("t", {"do": "update", "uri": "memo:x"})
            updates = (event async for event in events(get) if event["method"] == "notifications/resources/updated")
            assert (await anext(updates))["params"] == {"uri": "memo:x"}
        await session.post("resources/unsubscribe", {"uri": "memo:x"})
        seen = json.loads((await session.call("t", {"do": "seen"}))["result"]["content"][0]["text"])
        assert seen.count("resources/unsubscribe") == 1


async def test_a_subscription_moves_to_another_server_that_has_the_resource_now(gateway: RunningGateway) -> None:
    server = scripted(tools=TOOL, capabilities=FULL, resources=[{"uri": "memo:x", "name": "x"}])
    gateway.configure({"one": server})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session = await LegacyWire(http, gateway.url).open()
        for name in ("one", "two"):
            gateway.configure({name: server})
            assert (await session.post("resources/subscribe", {"uri": "memo:x"})).json()["result"] == {}
            seen = json.loads((await session.call("t", {"do": "seen"}))["result"]["content"][0]["text"])
            assert seen.count("resources/subscribe") == 1


async def test_a_server_that_does_not_answer_a_subscription_is_ready_all_the_same(gateway: RunningGateway) -> None:
    script: dict[str, Any] = {"tools": TOOL, "capabilities": FULL, "resources": [{"uri": "memo:x", "name": "x"}]}
    gateway.configure({"scripted": scripted(**script)})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session = await LegacyWire(http, gateway.url).open()
        assert (await session.post("resources/subscribe", {"uri": "memo:x"})).json()["result"] == {}
        silent = scripted(**script, ignored=["resources/subscribe"])
        assert gateway.configure({"scripted": silent})["scripted"]["state"] == "ready"


async def test_a_state_is_good_once_and_for_its_own_request_only(gateway: RunningGateway) -> None:
    gateway.configure({"fixture": conformance("legacy")})
    can: dict[str, Any] = {"elicitation": {}}
    call = {"name": "test_elicitation", "arguments": {"message": "Who?"}}
    answers = {"input-1": {"action": "accept", "content": {"username": "ada", "email": "a@b.c"}}}
    async with httpx.AsyncClient(timeout=BOUND_S) as http:

        async def ask(params: Any) -> Any:
            return (await modern(http, gateway.url, "tools/call", params, capabilities=can)).json()

        first = (await ask(call))["result"]
        assert first["resultType"] == "input_required"
        assert first["inputRequests"]["input-1"]["method"] == "elicitation/create"
        state = first["requestState"]
        tampered = {
            **call,
            "inputResponses": answers,
            "requestState": state[:-2] + ("AA" if state[-2:] != "AA" else "BB"),
        }
        assert (await ask(tampered))["error"]["code"] == -32602
        other = {**call, "arguments": {"message": "Else?"}, "inputResponses": answers, "requestState": state}
        assert (await ask(other))["error"]["code"] == -32602
        without = (await ask({**call, "inputResponses": {}, "requestState": state}))["result"]
        assert without["resultType"] == "input_required"
        assert without["requestState"] != state
        good = {**call, "inputResponses": answers, "requestState": without["requestState"]}
        assert "ada" in (await ask(good))["result"]["content"][0]["text"]
        assert (await ask(good))["error"]["code"] == -32602
        assert (await ask({**call, "requestState": "made up"}))["error"]["code"] == -32602


async def test_urls_a_legacy_server_wants_visited_become_input_requests_of_a_modern_client(
    gateway: RunningGateway,
) -> None:
    gateway.configure({"scripted": scripted(tools=TOOL)})
    url = {"mode": "url", "elicitationId": "e1", "url": "https://example.com/consent", "message": "Agree"}
    error = {"code": -32042, "message": "URL elicitation required", "data": {"elicitations": [url]}}
    call = {"name": "t", "arguments": {"do": "error", "error": error}}
    can: dict[str, Any] = {"elicitation": {"url": {}}}
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        asked = (await modern(http, gateway.url, "tools/call", call, capabilities=can)).json()["result"]
        assert asked["inputRequests"] == {
            "input-1": {
                "method": "elicitation/create",
                "params": {key: value for key, value in url.items() if key != "elicitationId"},
            }
        }
        answers = {"inputResponses": {"input-1": {"action": "accept"}}, "requestState": asked["requestState"]}
        again = await modern(http, gateway.url, "tools/call", {**call, **answers}, capabilities=can)
        assert again.json()["result"]["content"][0]["text"].startswith("t done")


async def test_two_modern_calls_of_one_client_do_not_make_its_questions_ambiguous(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=TOOL)})
    can: dict[str, Any] = {"elicitation": {}}
    question = {"do": "ask", "method": "elicitation/create", "params": {"message": "?", "requestedSchema": {}}}
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        abandoned = await modern(
            http, gateway.url, "tools/call", {"name": "u", "arguments": question}, capabilities=can
        )
        assert abandoned.json()["result"]["resultType"] == "input_required"
        call = {"name": "t", "arguments": question}
        asked = (await modern(http, gateway.url, "tools/call", call, capabilities=can)).json()["result"]
        answers = {"inputResponses": {"input-1": {"action": "decline"}}, "requestState": asked["requestState"]}
        answer = (await modern(http, gateway.url, "tools/call", {**call, **answers}, capabilities=can)).json()["result"]
        assert json.loads(answer["content"][0]["text"]) == {"action": "decline"}
