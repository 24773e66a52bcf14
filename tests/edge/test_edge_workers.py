"""Several edge processes on one port: what holds in one holds in all, and none of them is missed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import psutil
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.edge.edge import OPEN_LIMIT
from app.edge.relay import FromWorkers
from app.edge.server import EmbeddedServer, server_config
from app.edge.signed_urls import signature
from app.edge.workers import EdgeWorkers
from app.errors import EngineAway, NotFound
from tests.edge.conftest import to
from tests.edge.serving import Pod, answer, new_address, read_body, serving, with_lifespan
from tests.waiting import until

CONNECTIONS = 24
"""New ones of which each worker gets some, but for one time in 2^23."""

Act = Callable[[], Awaitable[None] | None]


def worker_processes() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it has ended, waited for or not
            if "app.edge.worker" in child.cmdline():
                found.append(child)
    return found


@dataclass
class Fleet:
    """Two workers, the control plane's side of them, and an API whose next answer comes after an act."""

    workers: EdgeWorkers
    port: int
    stack: ExitStack
    client: httpx.AsyncClient
    """Opens a connection for each request, so that any worker may have it."""
    act: Act = lambda: None
    resume: Callable[[str], Awaitable[None]] | None = None
    asked: list[Scope] = field(default_factory=list)
    """What reached the API."""
    api: ASGIApp | None = None
    """In place of the usual one."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def pod(self, app: ASGIApp, *, port: int = 49983, address: str | None = None) -> Pod:
        """A pod that serves `app` and of which the workers have not been told."""
        address = address or new_address()
        self.stack.enter_context(serving(app, address, port))
        return Pod(f"i{address.replace('.', '')}", address)

    def serve(self, pod: Pod, app: ASGIApp, *, port: int) -> None:
        assert pod.address is not None
        self.stack.enter_context(serving(app, pod.address, port))

    def counted(self) -> tuple[int, ...]:
        """What stands in the table of open requests."""
        file = self.workers._counts
        return tuple(memoryview(os.pread(file, os.fstat(file).st_size, 0)).cast("H"))

    def tell(self, pod: Pod) -> None:
        self.workers.tell(pod.sandbox_id, pod)

    def kill(self, pod: Pod) -> None:
        self.workers.tell(pod.sandbox_id, None)

    async def statuses(self, pod: Pod, path: str = "/", headers: dict[str, str] | None = None) -> set[int]:
        """What every worker answers to a request for a pod."""
        return {
            (await self.client.get(path, headers=to(pod) if headers is None else headers)).status_code
            for _ in range(CONNECTIONS)
        }

    @asynccontextmanager
    async def streams_that_break(self, pod: Pod, *, by: type[httpx.TransportError]) -> AsyncIterator[None]:
        """Some in every worker, open while the body runs; what it does must break all of them."""
        async with asyncio.TaskGroup() as group:
            opened = asyncio.Semaphore(0)

            async def reads_to_the_end() -> None:
                async with self.client.stream("GET", "/", headers=to(pod)) as response:
                    pieces = response.aiter_raw()
                    assert await anext(pieces) == b"first"
                    opened.release()
                    with pytest.raises(by):
                        await anext(pieces)

            for _ in range(CONNECTIONS):
                group.create_task(reads_to_the_end())
            for _ in range(CONNECTIONS):
                await opened.acquire()
            yield

    def processes(self) -> list[psutil.Process]:
        return worker_processes()

    async def _api(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope)
        if self.api is not None:
            await self.api(scope, receive, send)
            return
        body = await read_body(receive)
        done = self.act()
        if done is not None:
            await done
        await answer(send, scope["method"].encode() + b" " + body, headers=[(b"x-from", b"api")])

    async def _resume(self, sandbox_id: str) -> None:
        assert self.resume is not None
        await self.resume(sandbox_id)


@asynccontextmanager
async def a_fleet(
    home: Path, *, count: int = 2, acknowledged_within_s: float = 20.0, awaited: Collection[str] = ()
) -> AsyncIterator[Fleet]:
    first = socket.create_server(("127.0.0.1", 0), reuse_port=True, backlog=100)
    port = first.getsockname()[1]
    others = [socket.create_server(("127.0.0.1", port), reuse_port=True, backlog=100) for _ in range(count - 1)]
    workers = EdgeWorkers(
        [first, *others], home, sandbox_domain="sbx.example.test", acknowledged_within_s=acknowledged_within_s
    )
    client = httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=20, limits=httpx.Limits(max_keepalive_connections=0)
    )
    with ExitStack() as stack:
        fleet = Fleet(workers, port, stack, client)
        app = FromWorkers(workers.in_step(fleet._api))
        server = EmbeddedServer(server_config(app, lifespan="off"))
        serving_api = asyncio.create_task(server.serve([workers.listen()]))
        async with workers, client:
            await workers.admit(fleet._resume, awaited)
            yield fleet
        server.should_exit = True
        await serving_api
    assert not fleet.processes()


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with a_fleet(tmp_path) as fleet:
        yield fleet


@with_lifespan
async def greets(scope: Scope, receive: Receive, send: Send) -> None:
    await read_body(receive)
    await answer(send, b"hello")


@with_lifespan
async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """One event, then silence until the client is gone."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


@with_lifespan
async def echoes(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "text": message["text"]})


# -- what an answer of the API tells holds in every worker ------------------------------------------------------------


async def test_a_sandbox_is_found_by_every_worker_once_its_create_is_answered(fleet: Fleet) -> None:
    pod = fleet.pod(greets)
    fleet.act = lambda: fleet.tell(pod)
    await fleet.client.post("/v2/sandboxes")
    assert await fleet.statuses(pod) == {200}


async def test_a_killed_sandbox_is_found_by_no_worker_once_its_kill_is_answered(fleet: Fleet) -> None:
    pod = fleet.pod(greets)
    fleet.tell(pod)
    fleet.act = lambda: fleet.kill(pod)
    await fleet.client.delete(f"/sandboxes/{pod.sandbox_id}")
    assert await fleet.statuses(pod) == {502}


async def test_a_sandbox_that_is_not_taken_up_yet_is_gone_for_no_worker(tmp_path: Path) -> None:
    soon, dead = Pod("isoon", "127.0.0.1"), Pod("idead", "127.0.0.1")
    async with a_fleet(tmp_path, awaited=["isoon", "idead"]) as fleet:
        assert await fleet.statuses(soon) == {503}
        assert (await fleet.client.get("/", headers=to(soon))).headers["retry-after"] == "5"
        taken_up = replace(fleet.pod(greets), sandbox_id="isoon")
        fleet.tell(taken_up)
        fleet.kill(dead)
        await fleet.workers.caught_up()
        assert await fleet.statuses(taken_up) == {200}
        assert await fleet.statuses(dead) == {502}


async def test_an_answer_waits_for_the_slowest_worker(fleet: Fleet) -> None:
    sent: list[str] = []

    async def api(scope: Scope, receive: Receive, send: Send) -> None:
        fleet.tell(Pod("inew", "127.0.0.1"))
        await answer(send)

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message["type"])

    slow = fleet.processes()[0]
    slow.suspend()
    answering = asyncio.ensure_future(fleet.workers.in_step(api)({"type": "http"}, receive, send))
    quick = next(link for link in fleet.workers._links if link.process.pid != slow.pid)
    await until(lambda: quick.at == fleet.workers._step > 0)
    assert sent == []
    slow.resume()
    await answering
    assert sent == ["http.response.start", "http.response.body"]


async def test_creates_and_kills_in_a_storm_are_seen_in_order(fleet: Fleet) -> None:
    pod = fleet.pod(greets)

    async def toggled() -> None:
        fleet.act = lambda: fleet.tell(pod)
        await fleet.client.post("/v2/sandboxes")
        assert (await fleet.client.get("/", headers=to(pod))).status_code == 200
        fleet.act = lambda: fleet.kill(pod)
        await fleet.client.delete("/sandboxes/x")
        assert (await fleet.client.get("/", headers=to(pod))).status_code == 502

    for _ in range(50):
        await toggled()


async def test_a_paused_sandbox_is_found_by_no_worker_once_its_pause_is_answered(fleet: Fleet) -> None:
    pod = fleet.pod(greets)
    fleet.tell(pod)
    fleet.act = lambda: fleet.tell(replace(pod, address=None))
    await fleet.client.post(f"/sandboxes/{pod.sandbox_id}/pause")
    assert await fleet.statuses(pod) == {502}


async def test_streams_in_every_worker_break_at_a_kill(fleet: Fleet) -> None:
    pod = fleet.pod(endless)
    fleet.tell(pod)
    await fleet.workers.caught_up()
    async with fleet.streams_that_break(pod, by=httpx.RemoteProtocolError):
        fleet.kill(pod)


async def test_traffic_resumes_a_paused_sandbox_in_any_worker(fleet: Fleet) -> None:
    pod = fleet.pod(greets, port=8000)
    paused = replace(pod, address=None, may_resume=True)

    async def resume(sandbox_id: str) -> None:
        assert sandbox_id == pod.sandbox_id
        fleet.tell(pod)

    fleet.resume = resume
    for _ in range(CONNECTIONS):
        fleet.tell(paused)
        await fleet.workers.caught_up()
        assert (await fleet.client.get("/", headers=to(pod, 8000))).text == "hello"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (NotFound("Sandbox x was not found."), 502, "The sandbox was not found"),
        (EngineAway("The container engine does not answer."), 503, "The container engine does not answer."),
    ],
)
async def test_why_a_sandbox_could_not_be_resumed_reaches_the_client(
    fleet: Fleet, error: Exception, status: int, text: str
) -> None:
    async def resume(sandbox_id: str) -> None:
        raise error

    fleet.resume = resume
    pod = Pod("iasleep", None, may_resume=True)
    fleet.tell(pod)
    await fleet.workers.caught_up()
    response = await fleet.client.get("/", headers=to(pod, 8000))
    assert (response.status_code, response.json()["message"]) == (status, text)


async def test_signed_urls_find_their_sandbox_in_every_worker(fleet: Fleet) -> None:
    pod = replace(fleet.pod(greets), access_token="secret-of-this-sandbox")
    fleet.tell(pod)
    await fleet.workers.caught_up()
    signed = signature(path="/a", operation="read", user="user", token=pod.access_token, expiration=None)
    path = str(httpx.URL("/files", params={"path": "/a", "username": "user", "signature": signed}))
    assert await fleet.statuses(pod, path, {}) == {200}
    assert await fleet.statuses(pod, path.replace("v1_", "v1_x"), {}) == {401}


async def test_websockets_pass_every_worker_and_break_at_a_kill(fleet: Fleet) -> None:
    pod = fleet.pod(echoes, port=9000)
    fleet.tell(pod)
    await fleet.workers.caught_up()
    url = fleet.url.replace("http", "ws")
    sockets = [await connect(url, additional_headers=to(pod, 9000)) for _ in range(CONNECTIONS)]
    for one in sockets:
        await one.send("hello")
        assert await one.recv() == "hello"
    assert sum(fleet.counted()) == CONNECTIONS
    fleet.kill(pod)
    for one in sockets:
        with pytest.raises(ConnectionClosed):
            await one.recv()
    with pytest.raises(InvalidStatus):
        await connect(url, additional_headers=to(pod, 9000))
    assert sum(fleet.counted()) == 0


async def test_the_limit_of_open_requests_is_one_for_all_workers(fleet: Fleet) -> None:
    held = 0

    @with_lifespan
    async def holding(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal held
        held += 1
        while (await receive())["type"] != "http.disconnect":
            pass
        held -= 1

    pod = fleet.pod(holding, port=8000)
    fleet.serve(pod, greets, port=8001)
    fleet.tell(pod)
    await fleet.workers.caught_up()
    lines = "".join(f"{name}: {value}\r\n" for name, value in to(pod, 8000).items()).encode()
    writers = []
    for _ in range(OPEN_LIMIT):
        _, writer = await asyncio.open_connection("127.0.0.1", fleet.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n" + lines + b"\r\n")
        writers.append(writer)
    await until(lambda: held == OPEN_LIMIT)
    assert await fleet.statuses(pod, headers=to(pod, 8001)) == {429}
    for writer in writers:
        writer.transport.abort()
    await until(lambda: held == 0)
    assert await fleet.statuses(pod, headers=to(pod, 8001)) == {200}


async def test_what_a_killed_worker_had_open_counts_no_more(fleet: Fleet) -> None:
    pod = fleet.pod(endless)
    fleet.tell(pod)
    await fleet.workers.caught_up()
    async with fleet.streams_that_break(pod, by=httpx.TransportError):
        assert sum(fleet.counted()) == CONNECTIONS
        for process in fleet.processes():
            process.kill()
    await until(lambda: len(fleet.processes()) == 2)
    assert sum(fleet.counted()) == 0


# -- requests to the API -----------------------------------------------------------------------------------------------


async def test_every_method_reaches_the_api_with_body_and_answer(fleet: Fleet) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        response = await fleet.client.request(
            method, "/v2/things?a=%2F", content=b"body" if method in ("POST", "PUT") else None
        )
        expected = f"{method} " + ("body" if method in ("POST", "PUT") else "")
        assert (response.text, response.headers["x-from"]) == (expected, "api")
    assert {scope["query_string"] for scope in fleet.asked} == {b"a=%2F"}


async def test_a_large_body_streams_to_the_api(fleet: Fleet) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 65536

    response = await fleet.client.post("/upload", content=pieces())
    assert len(response.content) == len(b"POST ") + 64 * 65536


async def test_an_api_that_refuses_before_it_has_read_is_heard(fleet: Fleet) -> None:
    async def too_large(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await answer(send, b"too large", status=413)

    fleet.api = too_large
    for _ in range(5):
        response = await fleet.client.post("/upload", content=b"x" * (8 << 20))
        assert (response.status_code, response.text) == (413, "too large")
        assert (await fleet.client.post("/upload", content=b"x")).status_code == 413


async def test_the_api_sees_the_clients_address_and_no_made_up_one(fleet: Fleet) -> None:
    headers = {"X-Sandgate-Peer": "8.8.8.8 1", "Connection": "keep-alive, x-sandgate-peer"}
    await fleet.client.get("/health", headers=headers)
    (scope,) = fleet.asked
    host, port = scope["client"]
    assert (host, port > 1) == ("127.0.0.1", True)
    assert b"x-sandgate-peer" not in dict(scope["headers"])


async def test_the_door_to_the_api_is_for_this_user_only(fleet: Fleet, tmp_path: Path) -> None:
    assert (tmp_path / "edge.sock").stat().st_mode & 0o777 == 0o600


# -- processes ---------------------------------------------------------------------------------------------------------


async def test_a_killed_worker_is_replaced_and_knows_everything(fleet: Fleet) -> None:
    pod, gone = fleet.pod(greets), fleet.pod(greets)
    fleet.tell(pod)
    fleet.tell(gone)
    before = fleet.processes()
    before[0].kill()
    fleet.kill(gone)
    # Connections that wait for the worker meanwhile are taken by the one that replaces it.
    assert await fleet.statuses(pod) == {200}
    assert await fleet.statuses(gone) == {502}
    await until(lambda: len(fleet.processes()) == 2)
    assert before[0] not in fleet.processes()
    assert before[1] in fleet.processes()


async def test_a_worker_that_hangs_is_replaced_before_a_kill_is_answered(tmp_path: Path) -> None:
    async with a_fleet(tmp_path, acknowledged_within_s=3.0) as fleet:
        pod = fleet.pod(greets)
        fleet.tell(pod)
        await fleet.workers.caught_up()
        hanging = fleet.processes()[0]
        hanging.suspend()
        fleet.kill(pod)
        await fleet.workers.caught_up()
        assert not hanging.is_running() or hanging.status() == psutil.STATUS_ZOMBIE
        assert await fleet.statuses(pod) == {502}


async def test_no_secret_stands_in_a_workers_arguments_or_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDGATE_DATABASE_URL", "postgresql://user:sesame@host/name")
    async with a_fleet(tmp_path) as fleet:
        pod = replace(fleet.pod(greets), access_token="sesame", traffic_access_token="sesame")
        fleet.tell(pod)
        await fleet.workers.caught_up()
        for process in fleet.processes():
            assert "sesame" not in " ".join(process.cmdline())
            assert "sesame" not in " ".join(process.environ().values())


async def test_workers_take_no_signal_for_an_end_but_their_control_planes_word(fleet: Fleet) -> None:
    pod = fleet.pod(greets)
    fleet.tell(pod)
    await fleet.workers.caught_up()
    before = fleet.processes()
    for process in before:
        process.terminate()
        process.send_signal(signal.SIGINT)
    assert await fleet.statuses(pod) == {200}
    await fleet.workers.stop()
    assert not fleet.processes()


async def test_a_home_with_a_long_path_will_do(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30)
    home.mkdir()
    async with a_fleet(home, count=1) as fleet:
        assert (await fleet.client.get("/health")).text == "GET "


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("app.edge.worker", {"app.settings", "cryptography", "docker", "fastapi", "httpx", "pydantic", "sqlalchemy"}),
        (
            "app.serving",
            {"app.edge.workers", "app.edge.worker", "app.edge.relay", "app.edge.replica", "app.edge.lines"},
        ),
        ("app.serving", {"app.cli", "typer", "app.tls", "app.edge.tls", "cryptography.x509"}),
    ],
)
def test_a_worker_loads_nothing_of_the_server_and_a_server_nothing_of_what_few_use(
    module: str, absent: set[str]
) -> None:
    program = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & absent


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    yield
    left = worker_processes()
    assert not left
