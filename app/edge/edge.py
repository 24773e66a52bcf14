"""The data plane: stands in front of the API in the same process and port, and takes what is meant for a sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from app.edge.answers import Refusal, in_transition, not_found, send_refusal, too_many_connections
from app.edge.dialling import Dialler
from app.edge.directory import Directory
from app.edge.exchange import Exchange
from app.edge.open_counts import NobodyElse, OpenCounts
from app.edge.pool import Pool
from app.edge.routing import Asleep, Route, Router
from app.edge.stalls import STALL_S
from app.edge.waking import Resume, Waker
from app.edge.websocket import WebSocketExchange

T = TypeVar("T")

_LAST_WORDS_S = 5.0
"""How long a client may take to accept the answer to a request that was ended."""

OPEN_LIMIT = 600
"""Requests and WebSockets that one sandbox may have open: three programs with the 200 connections that an E2B SDK opens
at most. Each takes two sockets and, at worst, 0.3 MiB of buffers from all the others."""


class Edge:
    """An ASGI application. `async with` it while it serves: it owns the connections to the pods."""

    def __init__(
        self,
        api: ASGIApp,
        directory: Directory,
        *,
        sandbox_domain: str | None,
        resume: Resume,
        counts: OpenCounts | None = None,
        stall_s: float = STALL_S,
    ) -> None:
        """Args:
        sandbox_domain: as in the setting of that name; without one, hosts are not looked at.
        resume: is called when traffic comes for a paused sandbox that it may resume.
        counts: what processes on the same port have open together; None if there are no others.
        stall_s: how long a pod may take nothing of what a client sends on.
        """
        self._api = api
        self._router = Router(directory, sandbox_domain=sandbox_domain)
        self._dialler = Dialler()
        self._pool = Pool(self._dialler, stall_s=stall_s)
        self._stall_s = stall_s
        self._waker = Waker(resume, self._spawn)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._open: dict[str, set[_Life]] = {}
        self._counts = counts or NobodyElse()

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
        self._dialler.forget(sandbox_id)

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
            case way:
                await self._serve(way, scope, receive, send)

    async def _serve(self, way: Route | Asleep, scope: Scope, receive: Receive, send: Send) -> None:
        sandbox_id = way.sandbox_id
        lives = self._open.setdefault(sandbox_id, set())
        if len(lives) + self._counts.elsewhere(sandbox_id) >= OPEN_LIMIT:
            if not lives:
                del self._open[sandbox_id]
            await send_refusal(scope, send, too_many_connections(sandbox_id, OPEN_LIMIT))
            return
        life = _Life()
        lives.add(life)
        self._counts.note(sandbox_id, len(lives))
        exchange: Exchange | WebSocketExchange | None = None
        try:
            route = await self._woken(way, scope) if isinstance(way, Asleep) else way
            if isinstance(route, Refusal):
                await send_refusal(scope, send, route)
                return
            exchange = self._exchange(route, scope, receive, send)
            await exchange.run()
        except asyncio.CancelledError:
            reason = life.end()
            if reason is None:
                raise
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    if exchange is None:
                        await send_refusal(scope, send, reason)
                    else:
                        await exchange.refuse(reason)
        finally:
            lives.discard(life)
            if self._open.get(sandbox_id) is lives:
                self._counts.note(sandbox_id, len(lives))
                if not lives:
                    del self._open[sandbox_id]

    async def _woken(self, asleep: Asleep, scope: Scope) -> Route | Refusal:
        refusal = await self._waker.wake(asleep.sandbox_id)
        way = self._router.resolve(scope)
        if isinstance(way, Route):
            return way  # somebody else may have resumed it meanwhile, and ours found nothing to do
        return refusal or (way if isinstance(way, Refusal) else in_transition(asleep.sandbox_id))

    def _exchange(self, route: Route, scope: Scope, receive: Receive, send: Send) -> Exchange | WebSocketExchange:
        if scope["type"] == "http":
            return Exchange(scope, receive, send, route=route, pool=self._pool, spawn=self._spawn)
        return WebSocketExchange(
            scope, receive, send, route=route, dialler=self._dialler, spawn=self._spawn, stall_s=self._stall_s
        )

    def _end(self, sandbox_id: str, reason: Refusal) -> None:
        for life in self._open.pop(sandbox_id, ()):
            life.end_by(reason)
        self._counts.note(sandbox_id, 0)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Life:
    """How long an exchange may go on: without limit, as a stream may be silent for hours, until somebody ends it."""

    __slots__ = ("_reason", "_task")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._reason: Refusal | None = None

    def end_by(self, reason: Refusal) -> None:
        """From outside: cancels the task that carries the exchange."""
        if self._reason is None and self._task is not None:
            self._reason = reason
            self._task.cancel()

    def end(self) -> Refusal | None:
        """In the task, once it is cancelled: why; None if it was not only us, and the cancellation has to go on."""
        if self._reason is None or self._task is None or self._task.uncancel() > 0:
            return None
        return self._reason
