"""The resources whose updates a legacy server reports: each is a request of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from sandgate_gateway.callers import GATEWAY, Caller
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.protocol import INTERNAL_ERROR
from sandgate_gateway.upstreams.connection import ConnectionEndedError

AT_ONCE = 16
"""Requests under way: what one of them leaves unanswered holds up few others."""

Request = Callable[[str, dict[str, Any], Caller], Awaitable[Result]]


class LegacySubscriptions:
    """Of one connection."""

    def __init__(self, name: str, request: Request) -> None:
        self._name = name
        self._request = request
        self._wanted: frozenset[str] = frozenset()
        self._told: set[str] = set()
        """What the server was asked for and has not refused; one it has not answered in time may count there."""
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def want(self, uris: frozenset[str], timeout_s: float) -> dict[str, RpcError]:
        """Have updates of exactly these reported. Gives those that the server refuses, with its words, or does not
        answer for in time. What it refuses is asked for again the next time."""
        self._wanted = uris
        failed: dict[str, RpcError] = {}
        asking: dict[str, asyncio.Task[None]] = {}
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
                for uri in sorted(uris - self._told):
                    asking[uri] = group.create_task(self._subscribe(uri, failed))
                for uri in sorted(self._told - uris):
                    group.create_task(self._unsubscribe(uri))
        problem = f"server {self._name!r} did not answer a subscription within {timeout_s:g} s"
        for uri, task in asking.items():
            if task.cancelled():
                failed[uri] = RpcError(INTERNAL_ERROR, problem, {"server": self._name})
        return failed

    async def _subscribe(self, uri: str, failed: dict[str, RpcError]) -> None:
        async with self._turns:
            if uri in self._told or uri not in self._wanted:
                return
            self._told.add(uri)
            try:
                await self._request("resources/subscribe", {"uri": uri}, GATEWAY)
            except RpcError as error:
                self._told.discard(uri)
                failed[uri] = error
            except ConnectionEndedError:
                self._told.discard(uri)  # the next connection is told anyway

    async def _unsubscribe(self, uri: str) -> None:
        async with self._turns:
            if uri not in self._told or uri in self._wanted:
                return
            self._told.discard(uri)
            try:
                await self._request("resources/unsubscribe", {"uri": uri}, GATEWAY)
            except (RpcError, ConnectionEndedError):
                return  # nobody wants it any more: whether the server heard it matters little
