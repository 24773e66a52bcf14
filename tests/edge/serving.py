"""Real servers on loopback for the edge's tests: uvicorn in a thread, and raw TCP where a pod must misbehave."""

from __future__ import annotations

import asyncio
import itertools
import os
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import NotFound
from tests.waiting import BOUND_S, until

T = TypeVar("T")

_ADDRESSES = (f"127.{20 + os.getpid() % 200}.{os.getpid() // 200 % 250}.{last}" for last in itertools.count(2))


def new_address() -> str:
    """A loopback address of this test run's own: a pod's ports are part of the protocol and the same everywhere."""
    return next(_ADDRESSES)


@dataclass(frozen=True, slots=True)
class Pod:
    sandbox_id: str
    address: str | None
    access_token: str = "token"
    may_resume: bool = False
    dial_token: str | None = None
    traffic_access_token: str | None = None
    mask_request_host: str | None = None


class Pods(dict[str, Pod]):
    """A directory of sandboxes, and what resumes them."""

    def __init__(self, *pods: Pod) -> None:
        super().__init__((pod.sandbox_id, pod) for pod in pods)
        self.awaited: set[str] = set()
        self.on_resume: Callable[[str], Awaitable[None]] = self._cannot_resume

    async def resume(self, sandbox_id: str) -> None:
        await self.on_resume(sandbox_id)

    async def _cannot_resume(self, sandbox_id: str) -> None:
        raise NotFound(f"Sandbox {sandbox_id} was not found.")

    def add(self, pod: Pod) -> Pod:
        self[pod.sandbox_id] = pod
        return pod

    def find(self, sandbox_id: str) -> Pod | None:
        return self.get(sandbox_id)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())


class Serving:
    """A uvicorn server in a thread of its own."""

    def __init__(self, app: ASGIApp, host: str, port: int, **options: Any) -> None:
        config = uvicorn.Config(
            app, host, port, access_log=False, server_header=False, date_header=False, log_config=None, **options
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name=f"server on {host}", daemon=True)
        self.host = host
        self.port = port

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        self._thread.start()
        ready = threading.Event()
        bound = BOUND_S
        while not self._server.started and self._thread.is_alive() and bound > 0:
            ready.wait(0.005)
            bound -= 0.005
        assert self._server.started
        if self.port == 0:
            self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(BOUND_S)
        assert not self._thread.is_alive()


@contextmanager
def serving(app: ASGIApp, host: str = "127.0.0.1", port: int = 0, **options: Any) -> Iterator[Serving]:
    server = Serving(app, host, port, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Talking:
    port: int
    failures: list[Exception]
    """What conversations raised."""


@asynccontextmanager
async def talking(conversation: Conversation, address: str, port: int) -> AsyncIterator[Talking]:
    """A raw TCP server."""
    failures: list[Exception] = []
    open_now: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_now[asyncio.current_task()] = writer
        try:
            await conversation(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            failures.append(error)
        finally:
            writer.close()
            del open_now[asyncio.current_task()]

    server = await asyncio.start_server(connected, address, port)
    try:
        yield Talking(server.sockets[0].getsockname()[1], failures)
    finally:
        server.close()
        for writer in open_now.values():
            writer.transport.abort()
        await until(lambda: not open_now)
        await server.wait_closed()


async def read_body(receive: Receive) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


async def answer(
    send: Send, body: bytes = b"", *, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers or []})
    await send({"type": "http.response.body", "body": body})


def with_lifespan(
    on_http: Callable[[Scope, Receive, Send], Awaitable[None]],
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An application that answers uvicorn's lifespan messages, and everything else by `on_http`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await on_http(scope, receive, send)
            return
        message: Message = {"type": ""}
        while message["type"] != "lifespan.shutdown":
            message = await receive()
            await send({"type": message["type"] + ".complete"})

    return app


def trusting(ca_file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)
