"""Connections to pods, kept for a moment so that the next request need not open one."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from app.edge.connection import Connection

CONNECT_TIMEOUT_S = 5.0
IDLE_S = 4.0
"""How long an unused connection is kept: less than the 5 s after which common servers (uvicorn, Node) close theirs, so
that a request does not meet a connection that is just being closed."""
_IDLE_PER_PORT = 64


class PortClosedError(Exception):
    """Nothing accepts connections at the address and port, or not in time."""


Key = tuple[str, str, int]
"""Sandbox id, address and port. The id is part of it because addresses are used again by other pods."""


class Pool:
    def __init__(self, *, idle_s: float = IDLE_S) -> None:
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

    async def connect(self, key: Key) -> Connection:
        """Raises: PortClosedError."""
        _, address, port = key
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(Connection, address, port)
        except OSError as error:  # TimeoutError is one
            raise PortClosedError from error
        return connection

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
