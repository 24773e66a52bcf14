"""HTTP through the edge on real sockets: what is passed on as it came, and what the edge answers itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from tests.edge.applications import mirror
from tests.edge.conftest import DOMAIN, Front, to
from tests.edge.serving import Pod, answer, new_address, talking, with_lifespan
from tests.waiting import BOUND_S


async def test_a_request_arrives_as_it_was_sent(front: Front, client: httpx.AsyncClient) -> None:
    pod = front.sandbox(mirror, port=8000)
    sent = [
        ("Authorization", "Bearer from-the-client"),
        ("Cookie", "a=1"),
        ("X-Twice", "one"),
        ("X-Twice", "two"),
        ("X-Latin", "caf\u00e9"),
        ("Accept-Encoding", "br;q=0.5"),
    ]
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in [*sent, *to(pod, 8000).items()]]
    seen = (await client.request("PATCH", "/a%2Fb//c/%2E/d?x=%20&y=+", headers=pairs, content=b"body")).json()
    assert seen["method"] == "PATCH"
    assert seen["target"] == "/a%2Fb//c/%2E/d?x=%20&y=+"
    assert seen["body"] == "body"
    for name, value in sent:
        assert [name.lower(), value] in seen["headers"]
    names = [name for name, _ in seen["headers"]]
    assert names.count("x-twice") == 2
    assert names.count("content-length") == 1
    assert ["host", f"127.0.0.1:{front.server.port}"] in seen["headers"]


async def test_the_host_is_passed_on_as_the_client_sent_it(front: Front, client: httpx.AsyncClient) -> None:
    pod = front.sandbox(mirror, port=8000)
    host = f"8000-{pod.sandbox_id}.{DOMAIN}:8443"
    seen = (await client.get("/", headers={"Host": host})).json()
    assert ["host", host] in seen["headers"]


async def test_a_masked_host_is_what_services_see(front: Front, client: httpx.AsyncClient) -> None:
    pod = front.pods.add(Pod("imasked", new_address(), mask_request_host="app-${PORT}.internal:${PORT}"))
    for port in (8000, 50005, 49983):
        front.serve(pod, mirror, port=port)

    async def hosts(port: int) -> list[str]:
        seen = (await client.get("/", headers=to(pod, port))).json()
        return [value for name, value in seen["headers"] if name == "host"]

    assert await hosts(8000) == ["app-8000.internal:8000"]
    assert await hosts(50005) == ["app-50005.internal:50005"]
    assert await hosts(49983) == [f"127.0.0.1:{front.server.port}"]


async def test_the_traffic_token_is_for_the_edge_only(front: Front, client: httpx.AsyncClient) -> None:
    pod = front.pods.add(Pod("isecured", new_address(), traffic_access_token="traffic-token"))
    front.serve(pod, mirror, port=8000)
    token = {"E2B-Traffic-Access-Token": "traffic-token"}
    seen = (await client.get("/", headers=to(pod, 8000) | token)).json()
    assert "e2b-traffic-access-token" not in {name for name, _ in seen["headers"]}
    refused = await client.get("/", headers=to(pod, 8000))
    assert refused.status_code == 403
    text = "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing"
    assert refused.json() == {"sandboxId": "isecured", "message": text, "code": 403}
    page = await client.get("/", headers=to(pod, 8000) | {"Accept": "text/html"})
    assert (page.status_code, page.headers["content-type"]) == (403, "text/html; charset=utf-8")


@pytest.mark.parametrize("change", [str.lower, str.upper, str.swapcase])
async def test_header_names_can_be_in_any_case(front: Front, change: Callable[[str], str]) -> None:
    pod = front.sandbox(mirror, port=8000)
    headers = to(pod, 8000) | {"Content-Length": "2", "Host": f"1-inobody.{DOMAIN}"}
    lines = "".join(f"{change(name)}: {value}\r\n" for name, value in headers.items())
    reader, writer = await asyncio.open_connection(front.server.host, front.server.port)
    writer.write(f"POST / HTTP/1.1\r\n{lines}\r\nok".encode())
    async with asyncio.timeout(BOUND_S):
        assert b" 200 " in await reader.readline()
        assert b'"body": "ok"' in await reader.readuntil(b'"ok"')
    writer.close()
    await writer.wait_closed()


async def test_the_mcp_path_loses_its_prefix_and_keeps_its_query(front: Front, client: httpx.AsyncClient) -> None:
    pod = front.sandbox(mirror, port=50005)
    seen = (await client.post(f"/sandboxes/{pod.sandbox_id}/mcp?a=1", json={})).json()
    assert seen["target"] == "/mcp?a=1"


async def test_what_is_for_no_sandbox_reaches_the_api(front: Front, client: httpx.AsyncClient) -> None:
    assert (await client.get("/v2/sandboxes")).text == "api /v2/sandboxes"


async def test_hop_by_hop_headers_end_at_the_edge(front: Front, client: httpx.AsyncClient) -> None:
    pod = front.sandbox(mirror, port=8000)
    own = {
        "Connection": "keep-alive, X-Private, Host",
        "X-Private": "1",
        "Keep-Alive": "timeout=5",
        "TE": "trailers",
        "Proxy-Connection": "keep-alive",
        "Upgrade": "h2c",
        "Expect": "100-continue",
    }
    seen = (await client.post("/", headers=to(pod, 8000) | own, content=b"x")).json()
    names = {name for name, _ in seen["headers"]}
    assert not names & {"connection", "x-private", "keep-alive", "te", "proxy-connection", "upgrade", "expect"}
    assert "host" in names
    assert seen["body"] == "x"


@pytest.mark.parametrize("port", [49983, 50005, 8000])
async def test_a_chunked_body_arrives_whole(front: Front, client: httpx.AsyncClient, port: int) -> None:
    pod = front.sandbox(mirror, port=port)

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"one,", b"", b"two,", b"three"):
            yield piece

    seen = (await client.post("/", headers=to(pod, port), content=pieces())).json()
    assert seen["body"] == "one,two,three"
    assert ["transfer-encoding", "chunked"] in seen["headers"]


async def test_a_response_arrives_as_it_was_sent(front: Front, client: httpx.AsyncClient) -> None:
    @with_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"content-encoding", b"br"),
            (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
            (b"server", b"mine"),
            (b"content-length", b"3"),
        ]
        await answer(send, b"\x00\xff\x01", status=418, headers=headers)

    pod = front.sandbox(app, port=8000)
    async with client.stream("GET", "/", headers=to(pod, 8000)) as response:
        body = b"".join([piece async for piece in response.aiter_raw()])
    assert response.status_code == 418
    assert body == b"\x00\xff\x01"
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert response.headers.get_list("date") == ["Thu, 01 Jan 1970 00:00:00 GMT"]
    assert response.headers.get_list("server") == ["mine"]
    assert response.headers["content-encoding"] == "br"
    assert "transfer-encoding" not in response.headers


@pytest.mark.parametrize(
    ("method", "status", "length"),
    [("HEAD", 200, b"1000"), ("GET", 304, b"1000"), ("GET", 204, None), ("DELETE", 204, None)],
)
async def test_answers_without_a_body_leave_the_connection_usable(
    front: Front, client: httpx.AsyncClient, method: str, status: int, length: bytes | None
) -> None:
    headers = b"" if length is None else b"Content-Length: " + length + b"\r\n"

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 %d X\r\n%bX-Kept: 1\r\n\r\n" % (status, headers))

    pod = front.pods.add(Pod("iquiet", new_address()))
    assert pod.address
    async with talking(conversation, pod.address, 8000):
        for _ in range(3):
            response = await client.request(method, "/", headers=to(pod, 8000))
            assert response.status_code == status
            assert response.content == b""
            assert response.headers["x-kept"] == "1"
            if method == "HEAD":
                assert response.headers["content-length"] == "1000"
        assert (await client.get("/v2")).text == "api /v2"


async def test_a_body_that_ends_with_the_connection_arrives_whole(front: Front, client: httpx.AsyncClient) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 300_000)

    pod = front.pods.add(Pod("iold", new_address()))
    assert pod.address
    async with talking(conversation, pod.address, 8000):
        response = await client.get("/", headers=to(pod, 8000))
        assert response.content == b"x" * 300_000


async def test_trailers_of_an_answer_end_at_the_edge(front: Front, client: httpx.AsyncClient) -> None:
    trailers = b"".join(b"X-Trailer-%d: 1\r\n" % number for number in range(5_000))

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTrailer: X-Trailer-1\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"2\r\nok\r\n0\r\n" + trailers + b"\r\n")

    pod = front.pods.add(Pod("itrails", new_address()))
    assert pod.address
    async with talking(conversation, pod.address, 8000):
        for _ in range(3):
            response = await client.get("/", headers=to(pod, 8000))
            assert (response.status_code, response.text) == (200, "ok")
            assert not {"trailer", "x-trailer-1"} & set(response.headers)


async def test_interim_responses_are_skipped(front: Front, client: httpx.AsyncClient) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    pod = front.pods.add(Pod("ihints", new_address()))
    assert pod.address
    async with talking(conversation, pod.address, 8000):
        response = await client.get("/", headers=to(pod, 8000))
        assert (response.status_code, response.text) == (200, "ok")
        assert "link" not in response.headers


async def test_an_unknown_sandbox_is_answered_as_the_sdks_expect(front: Front, client: httpx.AsyncClient) -> None:
    response = await client.get("/health", headers={"E2b-Sandbox-Id": "igone", "E2b-Sandbox-Port": "49983"})
    assert response.status_code == 502
    assert response.headers["content-type"] == "application/json"
    assert response.content == b'{"sandboxId":"igone","message":"The sandbox was not found","code":502}'


async def test_a_closed_port_is_answered_as_the_sdks_expect(front: Front, client: httpx.AsyncClient) -> None:
    pod = front.sandbox()
    response = await client.post("/", headers=to(pod, 3000), content=b"x")
    assert response.status_code == 502
    expected = '{"sandboxId":"%s","message":"The sandbox is running but port is not open","port":3000,"code":502}'
    assert response.text == expected % pod.sandbox_id


async def test_a_browser_that_navigates_gets_a_page(front: Front, client: httpx.AsyncClient) -> None:
    pod = front.sandbox()
    navigation = to(pod, 3000) | {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    response = await client.get("/", headers=navigation)
    assert response.status_code == 502
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "port is not open" in response.text
    assert pod.address
    assert pod.address not in response.text
    assert (await client.post("/", headers=navigation)).headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1",
        b"HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 400_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x7fb\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=[
        "nothing",
        "ssh",
        "half a head",
        "status",
        "two lengths",
        "upgrade",
        "long head",
        "endless interim",
        "control",
        "delete",
    ],
)
async def test_a_service_that_does_not_speak_http_is_a_bad_gateway(
    front: Front, client: httpx.AsyncClient, reply: bytes
) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()

    pod = front.pods.add(Pod("iodd", new_address()))
    assert pod.address
    async with talking(conversation, pod.address, 8000):
        response = await client.get("/", headers=to(pod, 8000))
    assert response.status_code == 502
    assert response.json()["port"] == 8000
    assert "without a valid answer" in response.json()["message"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: {id}\r\nE2b-Sandbox-Port: 8000\r\nX: a\rY: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: {id}\r\nE2b-Sandbox-Port: 8000\r\nX: a\0b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: {id}\r\nE2b-Sandbox-Port: 8000\r\n"
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: {id}\r\nE2b-Sandbox-Port: 8000\r\n"
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nxxxxxx",
        b"POST / HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: {id}\r\nE2b-Sandbox-Port: 8000\r\n"
        b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["carriage return", "nul", "length and chunks", "two lengths", "gzip"],
)
async def test_a_request_that_could_be_read_in_two_ways_is_refused(front: Front, request_bytes: bytes) -> None:
    arrived: list[bytes] = []

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append(await reader.read(65536))

    pod = front.pods.add(Pod("iodd", new_address()))
    assert pod.address
    async with talking(conversation, pod.address, 8000):
        reader, writer = await asyncio.open_connection(front.server.host, front.server.port)
        writer.write(request_bytes.replace(b"{id}", b"iodd"))
        async with asyncio.timeout(BOUND_S):
            status_line = await reader.readline()
        writer.close()
        await writer.wait_closed()
    assert status_line.startswith(b"HTTP/1.1 400")
    assert arrived == []


async def test_a_client_that_expects_100_continue_is_told_to_go_on(front: Front) -> None:
    pod = front.sandbox(mirror, port=8000)
    with socket.create_connection((front.server.host, front.server.port)) as client:
        head = f"E2b-Sandbox-Id: {pod.sandbox_id}\r\nE2b-Sandbox-Port: 8000\r\nHost: x\r\nContent-Length: 4\r\n"
        client.settimeout(BOUND_S)
        await asyncio.to_thread(client.sendall, f"PUT / HTTP/1.1\r\nExpect: 100-continue\r\n{head}\r\n".encode())
        assert (await asyncio.to_thread(client.recv, 65536)).startswith(b"HTTP/1.1 100 Continue")
        await asyncio.to_thread(client.sendall, b"data")
        received = b""
        while b'"body": "data"' not in received:
            received += await asyncio.to_thread(client.recv, 65536)
    assert received.startswith(b"HTTP/1.1 200")
