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
"""How long a client may take to accept the answer to a request whose sandbox was killed."""


class Edge:
    """An ASGI application. `async with` it while it serves: it owns the connections to the pods."""

    def __init__(self, api: ASGIApp, directory: Directory, *, sandbox_domain: str | None) -> None:
        """Args: sandbox_domain: as in the setting of that name; without one, hosts are not looked at."""
        self._api = api
        self._router = Router(directory, sandbox_domain=sandbox_domain)
        self._pool = Pool()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: dict[str, set[asyncio.Timeout]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sandbox_id in list(self._open):
            self.drop(sandbox_id)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._pool.close()

    def drop(self, sandbox_id: str) -> None:
        """Breaks off every open stream of a sandbox at once: it was killed. Safe to repeat.

        Requests that have no answer yet get the one for an unknown sandbox.
        """
        now = asyncio.get_running_loop().time()
        for life in self._open.pop(sandbox_id, ()):
            life.reschedule(now)
        self._pool.forget(sandbox_id)

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
        # No time limit: a stream may be silent for hours. The timeout is what `drop` pulls.
        life = asyncio.timeout(None)
        lives.add(life)
        try:
            async with life:
                await exchange.run()
        except TimeoutError:
            if not life.expired():
                raise
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await exchange.refuse(not_found(sandbox_id))
        finally:
            lives.discard(life)
            if not lives and self._open.get(sandbox_id) is lives:
                del self._open[sandbox_id]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
