"""Connections to pods, kept for a moment so that the next request need not open one."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from functools import partial

from app.edge.connection import Connection
from app.edge.dialling import Dialler, Key
from app.edge.routing import Route

IDLE_S = 4.0
"""How long an unused connection is kept: less than the 5 s after which common servers (uvicorn, Node) close theirs, so
that a request does not meet a connection that is just being closed."""
_IDLE_PER_PORT = 64


class Pool:
    def __init__(self, dialler: Dialler, *, idle_s: float = IDLE_S, stall_s: float | None = None) -> None:
        self._dialler = dialler
        self._make_connection = partial(Connection, stall_s)
        self._idle_s = idle_s
        self._idle: defaultdict[Key, list[tuple[Connection, asyncio.TimerHandle]]] = defaultdict(list)

    def take(self, key: Key) -> Connection | None:
        """The connection used most recently, if one is idle."""
        idle = self._idle.get(key)
        while idle:
            connection, timer = idle.pop()
            timer.cancel()
            if not idle:
                del self._idle[key]
            if connection.is_reusable():
                return connection
        return None

    async def connect(self, route: Route) -> Connection:
        """Raises: PortClosedError."""
        return await self._dialler.connect(self._make_connection, route)

    def give_back(self, key: Key, connection: Connection) -> None:
        """Keeps the connection if its exchange ended well, closes it otherwise."""
        idle = self._idle[key] if connection.is_reusable() else None
        if idle is None or len(idle) >= _IDLE_PER_PORT:
            connection.abort()
            return
        timer = asyncio.get_running_loop().call_later(self._idle_s, self._expire, key, connection)
        idle.append((connection, timer))

    def forget(self, sandbox_id: str) -> None:
        """Closes what is idle for a sandbox. Safe to repeat."""
        for key in [key for key in self._idle if key[0] == sandbox_id]:
            for connection, timer in self._idle.pop(key):
                timer.cancel()
                connection.abort()

    def close(self) -> None:
        for sandbox_id in {key[0] for key in self._idle}:
            self.forget(sandbox_id)

    def _expire(self, key: Key, connection: Connection) -> None:
        left = [entry for entry in self._idle.get(key, []) if entry[0] is not connection]
        if left:
            self._idle[key] = left
        else:
            self._idle.pop(key, None)
        connection.abort()
