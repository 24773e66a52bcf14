"""Requests to the API that an edge worker received: passed to the control plane over a unix socket in the home.

Both ends stand here: `Relay` in a worker, `FromWorkers` in front of the application in the control plane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from app.edge.answers import Refusal
from app.edge.dialling import CONNECT_TIMEOUT_S, Dialler, P, PortClosedError
from app.edge.exchange import Exchange
from app.edge.heads import named_by_connection
from app.edge.pool import Pool
from app.edge.replica import KnownSandbox
from app.edge.routing import AGENT_PORT, Route

SOCKET_NAME = "edge.sock"

_PEER_HEADER = b"x-sandgate-peer"
"""The client's address and port with a space in between. Whatever a client sends by this name is dropped."""
_AWAY = Refusal(503, "The control plane is restarting. Try again.")

_NOBODY_THERE = 502
"""What an exchange answers if nobody is there, or the other side broke off."""

_CONTROL_PLANE = KnownSandbox(
    sandbox_id="",
    address="",
    may_resume=False,
    access_token="",
    dial_token=None,
    traffic_access_token=None,
    mask_request_host=None,
)


class Relay:
    """An ASGI application. Both directions at once, nothing buffered; the API has no WebSockets."""

    def __init__(self, socket_path: str) -> None:
        self._pool = Pool(_Door(socket_path))
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        # The control plane keeps idle connections for longer than the pool does, as a pod's agent does.
        route = Route(_CONTROL_PLANE, "", AGENT_PORT, path)
        scope["headers"] = _with_peer(scope)
        await _ApiExchange(scope, receive, send, route=route, pool=self._pool, spawn=self._spawn).run()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._pool.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class FromWorkers:
    """Gives requests from workers their client's address back. Only workers can reach the socket it serves."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host, _, port = next((value for name, value in scope["headers"] if name == _PEER_HEADER), b"").partition(
                b" "
            )
            scope["client"] = (host.decode(), int(port)) if port else None
            scope["headers"] = [header for header in scope["headers"] if header[0] != _PEER_HEADER]
        await self._app(scope, receive, send)


def _with_peer(scope: Scope) -> list[tuple[bytes, bytes]]:
    # `Connection` goes too, once it is heeded: it could name the header that is added.
    dropped = {_PEER_HEADER, b"connection"} | named_by_connection(scope["headers"])
    headers = [header for header in scope["headers"] if header[0] not in dropped]
    client = scope.get("client")
    return headers if client is None else [*headers, (_PEER_HEADER, f"{client[0]} {client[1]}".encode())]


class _Door(Dialler):
    """The way to the control plane."""

    def __init__(self, socket_path: str) -> None:
        super().__init__()
        self._socket_path = socket_path

    async def connect(self, make_protocol: Callable[[], P], route: Route) -> P:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, protocol = await asyncio.get_running_loop().create_unix_connection(make_protocol, self._socket_path)
        except OSError as error:  # TimeoutError is one
            raise PortClosedError from error
        return protocol


class _ApiExchange(Exchange):
    async def refuse(self, refusal: Refusal) -> None:
        """In words about the control plane instead of a sandbox."""
        await super().refuse(_AWAY if refusal.status == _NOBODY_THERE else replace(refusal, sandbox_id=None))
