"""The endpoint as HTTP: who may come in, and what the status codes, headers and streams say."""

import json

import httpx
import pytest
from sandgate_gateway.asgi import Headers, HttpError
from sandgate_gateway.security import check_bearer, check_browser

from tests.gateway.running_gateway import RunningGateway, scripted
from tests.gateway.wire import LegacyWire, base_headers, messages, modern, modern_request, nested

SCHEMA = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
TOOLS = [{"name": "t", "inputSchema": {"type": "object"}}, {"name": "h", "inputSchema": SCHEMA}]


async def test_health_is_open_and_everything_else_wants_a_token(gateway: RunningGateway) -> None:
    base = gateway.url.removesuffix("/mcp")
    gateway.configure({})
    async with httpx.AsyncClient(timeout=20) as http:
        assert (await http.get(f"{base}/health")).json() == {"status": "ok"}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}):
            answer = await http.post(gateway.url, headers=headers, json={})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
        assert (await http.get(f"{base}/elsewhere")).status_code == 404


async def test_without_a_configuration_no_token_is_good() -> None:
    with pytest.raises(HttpError):
        check_bearer("Bearer ", ())


@pytest.mark.parametrize(
    ("origin", "host", "address", "status"),
    [
        (None, "localhost:50005", "127.0.0.1", None),
        ("http://localhost:6274", "127.0.0.1:50005", "127.0.0.1", None),
        ("http://[::1]:3000", "[::1]:50005", "::1", None),
        (None, "50005-i123.sandbox.example", "172.18.0.2", None),
        ("https://app.example.com", "50005-i123.sandbox.example", "172.18.0.2", None),
        ("https://deep.pages.example", "x", "172.18.0.2", None),
        ("http://evil.example", "evil.example", "172.18.0.2", 403),
        ("https://notapp.example.com.evil", "x", "172.18.0.2", 403),
        ("null", "localhost", "127.0.0.1", 403),
        (None, "evil.example", "127.0.0.1", 421),
    ],
)
def test_browsers_come_in_from_local_and_public_hosts_only(
    origin: str | None, host: str, address: str, status: int | None
) -> None:
    public = ("app.example.com", "*.pages.example")
    if status is None:
        check_browser(origin=origin, host=host, server_address=address, public_hosts=public)
        return
    with pytest.raises(HttpError) as caught:
        check_browser(origin=origin, host=host, server_address=address, public_hosts=public)
    assert caught.value.status == status


async def test_a_foreign_origin_is_refused_on_the_wire(gateway: RunningGateway) -> None:
    gateway.configure({}, publicHosts=["app.example.com"])
    headers, body = modern_request("server/discover")
    async with httpx.AsyncClient(timeout=20) as http:
        for origin, status in (("http://evil.example", 403), ("https://app.example.com", 200)):
            answer = await http.post(gateway.url, headers={**headers, "Origin": origin}, json=body)
            assert answer.status_code == status
        answer = await http.post(gateway.url, headers={**headers, "Host": "evil.example"}, json=body)
        assert answer.status_code == 421


async def test_requests_that_are_wrong_as_http_are_told_so(gateway: RunningGateway) -> None:
    gateway.configure({})
    async with httpx.AsyncClient(timeout=20) as http:
        put = await http.put(gateway.url, headers=base_headers(), json={})
        assert (put.status_code, put.headers["allow"]) == (405, "GET, POST, DELETE")
        modern_get = await http.get(gateway.url, headers={**base_headers(), "MCP-Protocol-Version": "2026-07-28"})
        assert (modern_get.status_code, modern_get.headers["allow"]) == (405, "POST")
        for accept in ("application/json", "text/event-stream", "text/html"):
            answer = await http.post(gateway.url, headers={**base_headers(), "Accept": accept}, json={})
            assert answer.status_code == 406
        text = await http.post(gateway.url, headers={**base_headers(), "Content-Type": "text/plain"}, content=b"{}")
        assert text.status_code == 415
        large = await http.post(gateway.url, headers=base_headers(), content=b" " * (4 * 1024 * 1024 + 1))
        assert large.status_code == 413


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"[]", -32600),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600),
        (b'{"id":1,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', -32600),
    ],
)
async def test_bodies_that_are_not_one_message_are_refused(gateway: RunningGateway, body: bytes, code: int) -> None:
    gateway.configure({})
    async with httpx.AsyncClient(timeout=20) as http:
        answer = await http.post(gateway.url, headers=base_headers(), content=body)
        assert (answer.status_code, answer.json()["error"]["code"], answer.json()["id"]) == (400, code, None)


async def test_a_session_needs_its_id_and_ends_with_delete(gateway: RunningGateway) -> None:
    gateway.configure({})
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        without = {key: value for key, value in session.headers.items() if key != "Mcp-Session-Id"}
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        assert (await http.post(gateway.url, headers=without, json=ping)).status_code == 400
        wrong_version = {**session.headers, "MCP-Protocol-Version": "1999-01-01"}
        assert (await http.post(gateway.url, headers=wrong_version, json=ping)).status_code == 400
        assert (await http.delete(gateway.url, headers=session.headers)).status_code == 204
        assert (await session.post("ping")).status_code == 404
        assert (await http.get(gateway.url, headers=session.headers)).status_code == 404


async def test_a_broken_stream_is_resumed_with_what_was_missed(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=TOOLS)})
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        other = await LegacyWire(http, gateway.url).open()
        params = {"name": "t", "arguments": {"do": "wait"}}
        body = {"jsonrpc": "2.0", "id": "w", "method": "tools/call", "params": params}
        last_id = ""
        async with http.stream("POST", gateway.url, headers=session.headers, json=body) as response:
            assert response.headers["x-accel-buffering"] == "no"
            async for line in response.aiter_lines():
                if line.startswith("id: "):
                    last_id = line[4:]
                    break
        await other.call("t", {"do": "release"})
        resume = {**session.headers, "Last-Event-ID": last_id}
        answer = await http.get(gateway.url, headers=resume)
        (message,) = messages(answer)
        assert message["id"] == "w"
        assert message["result"]["content"][0]["text"] == "released 0"
        for event_id in ("99-1", "0-\xb2", "0-" + "1" * 5000, "0", "-1"):
            headers = httpx.Headers({**session.headers, "Last-Event-ID": event_id}, encoding="latin-1")
            assert (await http.get(gateway.url, headers=headers)).status_code == 404


async def test_what_a_stream_has_delivered_is_not_delivered_again(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=TOOLS)})
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        ids = []
        for name in ("one", "two"):
            async with http.stream("GET", gateway.url, headers=session.headers) as stream:
                tools = [*TOOLS, {"name": name, "inputSchema": {"type": "object"}}]
                await session.call("t", {"do": "rename", "tools": tools})
                lines = stream.aiter_lines()
                async for line in lines:
                    ids += [line] if line.startswith("id: ") else []
                    if "list_changed" in line:
                        break
        assert ids == ["id: 0-0", "id: 0-1", "id: 0-1", "id: 0-2"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"Mcp-Method": "tools/list"}, -32020),
        ({"Mcp-Name": "other"}, -32020),
        ({"MCP-Protocol-Version": "2027-01-01"}, -32020),
    ],
)
async def test_headers_that_say_something_else_than_the_body_are_refused(
    gateway: RunningGateway, change: dict[str, str], code: int
) -> None:
    gateway.configure({"scripted": scripted(tools=TOOLS)})
    headers, body = modern_request("tools/call", {"name": "t"})
    async with httpx.AsyncClient(timeout=20) as http:
        answer = await http.post(gateway.url, headers={**headers, **change}, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


async def test_a_duplicated_routing_header_is_refused(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=TOOLS)})
    headers, body = modern_request("tools/call", {"name": "t"})
    async with httpx.AsyncClient(timeout=20) as http:
        twice = await http.post(gateway.url, headers=[*headers.items(), ("Mcp-Name", "t")], json=body)
        assert (twice.status_code, twice.json()["error"]["code"]) == (400, -32020)


def test_blanks_around_a_header_value_are_not_part_of_it() -> None:
    headers = Headers([(b"mcp-name", b" \tadd  "), (b"mcp-method", b"a"), (b"mcp-method", b"b")])
    assert headers == {"mcp-name": "add", "mcp-method": "b"}
    assert headers.duplicated == {"mcp-method"}


async def test_an_annotated_argument_must_be_repeated_in_its_header(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=TOOLS)})
    headers, body = modern_request("tools/call", {"name": "h", "arguments": {"region": "Österreich"}})
    encoded = "=?base64?w5ZzdGVycmVpY2g=?="
    async with httpx.AsyncClient(timeout=20) as http:
        for extra, status in (({"Mcp-Param-Region": encoded}, 200), ({"Mcp-Param-Region": "x"}, 400), ({}, 400)):
            answer = await http.post(gateway.url, headers={**headers, **extra}, json=body)
            assert answer.status_code == status, extra


async def test_the_envelope_of_a_modern_request_is_checked(gateway: RunningGateway) -> None:
    gateway.configure({})
    async with httpx.AsyncClient(timeout=20) as http:
        headers, body = modern_request("tools/list")
        for key in ("protocolVersion", "clientCapabilities"):
            meta = {name: v for name, v in body["params"]["_meta"].items() if not name.endswith(key)}
            answer = await http.post(gateway.url, headers=headers, json={**body, "params": {"_meta": meta}})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32602)
        text = json.dumps(body).replace("2026-07-28", "2099-01-01")
        answer = await http.post(gateway.url, headers={**headers, "MCP-Protocol-Version": "2099-01-01"}, content=text)
        assert answer.status_code == 400
        assert answer.json()["error"]["data"]["requested"] == "2099-01-01"
        assert answer.json()["error"]["data"]["supported"][0] == "2026-07-28"
        unknown = await modern(http, gateway.url, "tasks/list")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, -32601)


async def test_arguments_nested_too_deep_to_be_passed_on_are_refused(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=TOOLS)})
    error = {"code": -32602, "message": "the message is nested too deep to be passed on"}
    deep = {"name": "t", "arguments": nested(300)}
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        assert "result" in await session.call("t", nested(200))
        assert messages(await session.post("tools/call", deep))[-1]["error"] == error
        assert "result" in await session.call("t")
        refused = await modern(http, gateway.url, "tools/call", deep)
        assert (refused.status_code, refused.json()["error"]) == (400, error)
        refused = await modern(http, gateway.url, "tools/call", {"name": "t"}, capabilities=nested(300))
        assert (refused.status_code, refused.json()["error"]) == (400, error)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        ("100000000000000000000000", 400),
        ("18446744073709551616", 400),
        ("-9223372036854775809", 400),
        ("18446744073709551615", 200),
        ("-9223372036854775808", 200),
        ("1e+30", 200),
        ("1.5", 200),
        ('"100000000000000000000000"', 200),
        ('"text, 100000000000000000000000, text"', 200),
    ],
)
async def test_an_integer_that_would_not_arrive_as_it_was_sent_is_refused(
    gateway: RunningGateway, number: str, status: int
) -> None:
    gateway.configure({"scripted": scripted(tools=TOOLS)})
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        text = '{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"t","arguments":{"in":[{"wei": %s}]}}}'
        answer = await http.post(gateway.url, headers=session.headers, content=text % number)
        assert answer.status_code == status
        if status == 400:
            assert (answer.json()["id"], answer.json()["error"]["code"]) == (7, -32602)


async def test_what_a_client_declares_is_not_kept_whatever_it_takes(gateway: RunningGateway) -> None:
    gateway.configure({})
    async with httpx.AsyncClient(timeout=20) as http:
        session = LegacyWire(http, gateway.url)
        for capabilities in ({"experimental": "x" * 8192}, nested(300)):
            params = {"protocolVersion": "2025-11-25", "capabilities": capabilities}
            answer = await session.post("initialize", params)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32602)
        values = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":[' + b"[]," * 10**6 + b"1]}}"
        answer = await http.post(gateway.url, headers=session.headers, content=values)
        assert (answer.status_code, answer.json()) == (413, {"error": "The body has more than 1000000 values."})


async def test_a_made_up_cursor_is_refused(gateway: RunningGateway) -> None:
    gateway.configure({"scripted": scripted(tools=TOOLS)})
    async with httpx.AsyncClient(timeout=20) as http:
        answer = await modern(http, gateway.url, "tools/list", {"cursor": "made up"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32602)


async def test_long_lists_come_in_pages(gateway: RunningGateway) -> None:
    tools = [{"name": f"t{number}", "inputSchema": {"type": "object"}} for number in range(1500)]
    gateway.configure({"scripted": scripted(tools=tools)})
    async with httpx.AsyncClient(timeout=20) as http:
        first = (await modern(http, gateway.url, "tools/list")).json()["result"]
        second = (await modern(http, gateway.url, "tools/list", {"cursor": first["nextCursor"]})).json()["result"]
        assert [tool["name"] for tool in first["tools"] + second["tools"]] == [tool["name"] for tool in tools]
        assert "nextCursor" not in second
