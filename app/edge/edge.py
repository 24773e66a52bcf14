"""The data plane: stands in front of the API in the same process and port, and takes what is meant for a sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from starlette.types import ASGIApp, Receive, Scope, Send

from app.edge.answers import Refusal, not_found, send_refusal
from app.edge.directory import Directory
from app.edge.exchange import Exchange
from app.edge.pool import Pool
from app.edge.routing import Route, Router
from app.edge.websocket import WebSocketExchange

_LAST_WORDS_S = 5.0
"""How long a client may take to accept the answer to a request that was ended."""


class Edge:
    """An ASGI application. `async with` it while it serves: it owns the connections to the pods."""

    def __init__(self, api: ASGIApp, directory: Directory, *, sandbox_domain: str | None) -> None:
        """Args: sandbox_domain: as in the setting of that name; without one, hosts are not looked at."""
        self._api = api
        self._router = Router(directory, sandbox_domain=sandbox_domain)
        self._pool = Pool()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: dict[str, set[_Life]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_streams()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_WORDS_S)
        self._pool.close()

    def drop(self, sandbox_id: str) -> None:
        """Breaks off every open stream of a sandbox at once: it was killed. Safe to repeat.

        Requests that have no answer yet get the one for an unknown sandbox.
        """
        self._end(sandbox_id, not_found(sandbox_id))
        self._pool.forget(sandbox_id)

    def close_streams(self) -> None:
        """Breaks off every open stream: the control plane stops. Without it a server waits for streams without end."""
        for sandbox_id in list(self._open):
            self._end(sandbox_id, Refusal(503, "The control plane is restarting. Try again.", sandbox_id))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._api(scope, receive, send)
            return
        match self._router.resolve(scope):
            case None:
                await self._api(scope, receive, send)
            case Refusal() as refusal:
                await send_refusal(scope, send, refusal)
            case Route() as route:
                await self._forward(route, scope, receive, send)

    async def _forward(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange | WebSocketExchange
        if scope["type"] == "http":
            exchange = Exchange(scope, receive, send, route=route, pool=self._pool, spawn=self._spawn)
        else:
            exchange = WebSocketExchange(scope, receive, send, route=route, spawn=self._spawn)
        sandbox_id = route.target.sandbox_id
        lives = self._open.setdefault(sandbox_id, set())
        life = _Life()
        lives.add(life)
        try:
            async with life.timeout:
                await exchange.run()
        except TimeoutError:
            if life.ended_by is None:
                raise
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await exchange.refuse(life.ended_by)
        finally:
            lives.discard(life)
            if not lives and self._open.get(sandbox_id) is lives:
                del self._open[sandbox_id]

    def _end(self, sandbox_id: str, reason: Refusal) -> None:
        now = asyncio.get_running_loop().time()
        for life in self._open.pop(sandbox_id, ()):
            life.ended_by = reason
            life.timeout.reschedule(now)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Life:
    """How long an exchange may go on: without limit, as a stream may be silent for hours, until somebody ends it."""

    __slots__ = ("ended_by", "timeout")

    def __init__(self) -> None:
        self.timeout = asyncio.timeout(None)
        self.ended_by: Refusal | None = None
