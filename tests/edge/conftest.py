"""An edge in front of a small API, and pods on loopback addresses behind it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from app.edge.edge import Edge
from app.edge.http_protocol import HttpProtocol
from app.edge.stalls import STALL_S
from tests.edge.serving import Pod, Pods, Serving, answer, new_address, read_body, serving

DOMAIN = "sbx.example.test"

_ids = itertools.count(1)


@dataclass
class Front:
    """What clients see, and a hand on the edge inside."""

    edge: Edge
    pods: Pods
    server: Serving
    loop: asyncio.AbstractEventLoop
    _stack: ExitStack

    @property
    def url(self) -> str:
        return self.server.url

    def ws(self, path: str = "/") -> str:
        """The same for WebSockets."""
        return self.url.replace("http", "ws") + path

    def drop(self, sandbox_id: str) -> None:
        """As when a sandbox is killed: it is forgotten, then its streams are dropped."""
        self.pods.pop(sandbox_id)
        self.loop.call_soon_threadsafe(self.edge.drop, sandbox_id)

    def sandbox(self, app: ASGIApp | None = None, *, port: int = 49983) -> Pod:
        """A sandbox whose pod serves `app` on a port; without an app nothing listens."""
        pod = self.pods.add(Pod(f"isandbox{next(_ids)}", new_address()))
        if app is not None:
            self.serve(pod, app, port=port)
        return pod

    def serve(self, pod: Pod, app: ASGIApp, *, port: int) -> Serving:
        assert pod.address is not None
        return self._stack.enter_context(serving(app, pod.address, port))


def to(pod: Pod, port: int = 49983) -> dict[str, str]:
    """The routing headers."""
    return {"E2b-Sandbox-Id": pod.sandbox_id, "E2b-Sandbox-Port": str(port)}


EdgeServer = tuple[Edge, Pods, Serving, asyncio.AbstractEventLoop]


@pytest.fixture(scope="session")
def edge_server() -> Iterator[EdgeServer]:
    """One edge for the whole run: what tests of one sandbox do must not show in another."""
    with edge_serving() as served:
        yield served


@contextmanager
def edge_serving(*, stall_s: float = STALL_S) -> Iterator[EdgeServer]:
    pods = Pods()
    loops: list[asyncio.AbstractEventLoop] = []

    async def api(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            async with edge:
                loops.append(asyncio.get_running_loop())
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await read_body(receive)
        await answer(send, b"api " + scope["path"].encode())

    edge = Edge(api, pods, sandbox_domain=f"{DOMAIN}:8443", resume=pods.resume, stall_s=stall_s)
    with serving(edge, http=HttpProtocol, ws="websockets-sansio", proxy_headers=False, loop="uvloop") as server:
        yield edge, pods, server, loops[0]


@pytest.fixture
def front(edge_server: EdgeServer) -> Iterator[Front]:
    with fronting(edge_server) as front:
        yield front


@contextmanager
def fronting(served: EdgeServer) -> Iterator[Front]:
    edge, pods, server, loop = served
    with ExitStack() as stack:
        yield Front(edge, pods, server, loop, stack)
    pods.clear()


@pytest.fixture
async def client(front: Front) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=front.url, timeout=20) as client:
        yield client
