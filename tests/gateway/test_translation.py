"""From one protocol era to the other: envelopes out, results back, and what a server's first answer means."""

from typing import Any

import pytest
from sandgate_gateway.callers import GATEWAY, Caller
from sandgate_gateway.eras.outgoing import outgoing_params
from sandgate_gateway.eras.probe import accepted_legacy_version, is_modern_refusal, modern_version, offered_version
from sandgate_gateway.eras.translate import answer_inputs, input_request, result_for
from sandgate_gateway.headers import Annotations, decode_value, encode_value, request_headers
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.upstreams.correlation import CANCELLED_COUNTS_S, Correlation

META = "io.modelcontextprotocol/"


class Client(Caller):
    """A client that answers every question with its method."""

    def __init__(self, key: str = "c", era: Any = "legacy", **capabilities: Any) -> None:
        self.key = key
        self.era = era
        self.capabilities = capabilities
        self.asked: list[tuple[str, Any]] = []

    async def ask(self, method: str, params: Any) -> Any:
        self.asked.append((method, params))
        return {"answered": method}


def test_a_modern_server_gets_the_envelope_of_the_caller_and_nothing_of_the_clients_own() -> None:
    caller = Client(era="modern", elicitation={}, extensions={f"{META}ui": {}, f"{META}tasks": {}})
    caller.log_level = "warning"
    params = {"name": "t", "_meta": {"progressToken": "x", f"{META}protocolVersion": "old", "traceparent": "00-1"}}
    outgoing = outgoing_params("modern", "2026-07-28", params, caller, 7)
    assert outgoing == {
        "name": "t",
        "_meta": {
            "traceparent": "00-1",
            "progressToken": 7,
            f"{META}protocolVersion": "2026-07-28",
            f"{META}clientCapabilities": {"elicitation": {}, "extensions": {f"{META}ui": {}}},
            f"{META}clientInfo": {"name": "sandgate", "title": "Sandgate", "version": "0.1.0"},
            f"{META}logLevel": "warning",
        },
    }
    assert params["_meta"] == {"progressToken": "x", f"{META}protocolVersion": "old", "traceparent": "00-1"}


def test_a_legacy_server_gets_no_envelope() -> None:
    params = {"name": "t", "_meta": {f"{META}protocolVersion": "2026-07-28", f"{META}clientCapabilities": {}}}
    assert outgoing_params("legacy", "2025-11-25", params, Client(era="modern"), None) == {"name": "t"}


def test_a_legacy_client_that_set_no_level_still_gets_the_logs_of_a_modern_server() -> None:
    assert outgoing_params("modern", "2026-07-28", {}, Client(), None)["_meta"][f"{META}logLevel"] == "info"
    assert f"{META}logLevel" not in outgoing_params("modern", "2026-07-28", {}, GATEWAY, None)["_meta"]


def test_a_result_stays_the_same_object_on_the_diagonal() -> None:
    legacy, modern = Result({"content": []}), Result({"resultType": "complete"})
    assert result_for("legacy", "legacy", "tools/call", legacy) is legacy
    assert result_for("modern", "modern", "tools/call", modern) is modern


def test_a_legacy_result_becomes_complete_for_a_modern_client() -> None:
    raw = b'{"content":[ ],"structuredContent":null}'
    result = result_for("modern", "legacy", "tools/call", Result({"content": [], "structuredContent": None}, raw))
    assert result.raw.endswith(b',"content":[ ],"structuredContent":null}')
    assert result.value["resultType"] == "complete"
    read = result_for("modern", "legacy", "resources/read", Result({"contents": [], "_meta": {"own": 1}}))
    assert (read.value["ttlMs"], read.value["cacheScope"], read.value["_meta"]["own"]) == (0, "private", 1)


def test_a_modern_result_loses_what_legacy_clients_do_not_know() -> None:
    meta = {f"{META}serverInfo": {}, "own": 1}
    value = {"contents": [], "resultType": "complete", "ttlMs": 1, "cacheScope": "public", "_meta": meta}
    assert result_for("legacy", "modern", "resources/read", Result(value)).value == {
        "contents": [],
        "_meta": {"own": 1},
    }


def test_an_input_request_carries_nothing_of_the_legacy_wire() -> None:
    params = {"mode": "url", "elicitationId": "e", "task": {}, "_meta": {"progressToken": 1}}
    assert input_request("elicitation/create", params) == {"method": "elicitation/create", "params": {"mode": "url"}}
    assert input_request("roots/list", None) == {"method": "roots/list"}


async def test_what_a_modern_server_requires_a_legacy_client_is_asked_for() -> None:
    answers = [
        {"resultType": "input_required", "inputRequests": {"a": {"method": "roots/list"}}, "requestState": "s1"},
        {"resultType": "input_required", "requestState": "s2"},
        {"resultType": "complete", "content": []},
    ]
    sent: list[Any] = []

    async def request(method: str, params: dict[str, Any], caller: Caller) -> Result:
        sent.append(params)
        return Result(answers[len(sent) - 1])

    client = Client()
    result = await answer_inputs(request, "tools/call", {"name": "t"}, client)
    assert result.value == answers[2]
    assert client.asked == [("roots/list", None)]
    assert sent == [
        {"name": "t"},
        {"name": "t", "inputResponses": {"a": {"answered": "roots/list"}}, "requestState": "s1"},
        {"name": "t", "requestState": "s2"},
    ]


async def test_a_server_that_never_stops_asking_is_given_up() -> None:
    async def request(method: str, params: dict[str, Any], caller: Caller) -> Result:
        return Result({"resultType": "input_required", "inputRequests": {"a": {"method": "roots/list"}}})

    with pytest.raises(RpcError, match="more than 10 times"):
        await answer_inputs(request, "tools/call", {}, Client())


def test_the_first_answer_tells_the_era() -> None:
    assert modern_version(Result({"supportedVersions": ["2026-07-28", "2025-11-25"]})) == "2026-07-28"
    assert modern_version(Result({"supportedVersions": ["2025-11-25"]})) is None
    assert modern_version(Result(None)) is None
    assert not is_modern_refusal(RpcError(-32601, "no"))
    assert not is_modern_refusal(RpcError(-32022, "no", {"supported": ["2027-01-01", "2025-06-18"]}))
    assert is_modern_refusal(RpcError(-32022, "no", {"supported": ["2027-01-01"]}))
    assert offered_version(RpcError(-32022, "no", {"supported": ["2026-07-28"]})) == "2026-07-28"
    assert accepted_legacy_version({"protocolVersion": "2024-11-05"}) == "2024-11-05"
    with pytest.raises(RpcError):
        accepted_legacy_version({"protocolVersion": "2026-07-28"})


@pytest.mark.parametrize("value", ["plain", " padded", "Österreich", "=?base64?eA==?=", "line\nend", ""])
def test_a_header_value_survives_the_way(value: str) -> None:
    encoded = encode_value(value)
    assert encoded.isascii()
    assert encoded == encoded.strip()
    assert decode_value(encoded) == value


def test_a_broken_header_value_equals_nothing() -> None:
    assert decode_value("=?base64?not base64?=") is None
    assert decode_value("=?base64?/w==?=") is None


def test_annotated_arguments_become_headers() -> None:
    schema = {
        "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "deep": {"type": "object", "properties": {"n": {"type": "integer", "x-mcp-header": "N"}}},
            "absent": {"type": "boolean", "x-mcp-header": "Absent"},
        }
    }
    params = {"name": "t", "arguments": {"region": "eu", "deep": {"n": 3}}}
    assert request_headers("tools/call", params, "2026-07-28", Annotations(schema)) == {
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": "t",
        "Mcp-Param-Region": "eu",
        "Mcp-Param-N": "3",
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"x-mcp-header": "A"},
        {"properties": {"a": {"type": "number", "x-mcp-header": "A"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": "A B"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": ""}}},
        {"properties": {"a": {"items": {"type": "string", "x-mcp-header": "A"}}}},
        {"properties": {n: {"type": "string", "x-mcp-header": h} for n, h in (("a", "A"), ("b", "a"))}},
    ],
)
def test_invalid_annotations_are_found(schema: Any) -> None:
    assert Annotations(schema).problem is not None
    assert Annotations({"properties": {"a": {"default": schema}}}).problem is None


async def test_a_question_is_for_whoever_is_not_waiting_for_an_answer() -> None:
    correlation = Correlation()
    waiting, active, unable = Client("w", elicitation={}), Client("a", elicitation={}), Client("u")
    for caller in (waiting, active):
        correlation.add(caller, Any)  # type: ignore[arg-type]
    with pytest.raises(RpcError, match="2 clients"):
        correlation.caller_for_request("elicitation/create")
    with correlation.asking(waiting):
        assert correlation.caller_for_request("elicitation/create") is active
        correlation.add(unable, Any)  # type: ignore[arg-type]
        with pytest.raises(RpcError, match="2 clients"):
            correlation.caller_for_request("elicitation/create")
        with correlation.asking(active), pytest.raises(RpcError, match="no client"):
            correlation.caller_for_request("elicitation/create")
    assert unable.lacked_capability == "elicitation/create"


async def test_a_cancelled_call_counts_for_a_minute_or_until_it_is_answered() -> None:
    now = 0.0
    correlation = Correlation(lambda: now)
    other = Client("o", elicitation={})
    correlation.add(other, Any)  # type: ignore[arg-type]
    for ending in ("answer", "time"):
        cancelled = correlation.add(Client("c", elicitation={}), Any)  # type: ignore[arg-type]
        correlation.cancel(cancelled.identifier)
        with pytest.raises(RpcError, match="just cancelled one"):
            correlation.caller_for_request("elicitation/create")
        assert correlation.caller_for_log("error") is None
        if ending == "answer":
            assert correlation.take(cancelled.identifier) is None
        else:
            now += CANCELLED_COUNTS_S
        assert correlation.caller_for_request("elicitation/create") is other
        assert correlation.caller_for_log("error") is other
