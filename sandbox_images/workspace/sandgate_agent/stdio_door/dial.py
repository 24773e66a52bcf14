"""Dialling through the door (ARCHITECTURE.md, section 6.2): how services that listen on loopback only are reached.

They cannot be reached at the pod's address. The agent is inside, so it connects to them and passes bytes both ways.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Mapping
from typing import Any, cast

import orjson

from sandgate_agent.errors import InvalidArgument

_PRIVATE_PORTS = frozenset({49983, 49984, 50006})
"""The agent's HTTP surface, this door and the gateway's control: who may use them comes by the pod's address."""

_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))

_TIMEOUT_S = 3.0
"""For the whole dial, which waits if a service's backlog is full. The edge has more patience than this."""


class DialError(Exception):
    """Why nothing was connected."""


def parse_dial(message: Mapping[str, Any]) -> int:
    """The port that a first line asks for. Raises: InvalidArgument."""
    dial = message["dial"]
    port = dial.get("port") if isinstance(dial, dict) else None
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise InvalidArgument("dial.port must be a number from 1 to 65535")
    return port


async def dial(port: int, writer: asyncio.StreamWriter) -> None:
    """Connect to a loopback port, answer whether that worked, and pass bytes until both sides have ended.

    The dialler sends nothing before it has the answer; from then on its bytes go straight to the service.
    Raises: ConnectionError if the dialler went away.
    """
    try:
        service = await _connect(port)
    except DialError as error:
        writer.write(orjson.dumps({"error": str(error)}) + b"\n")
        await writer.drain()
        return
    near, far = _End(), _End()
    near.other, far.other = far, near
    near.transport = writer.transport  # type: ignore[assignment] # a TCP connection is a whole Transport
    near.predecessor = near.transport.get_protocol()
    near.transport.pause_reading()
    near.transport.write(b'{"connected": true}\n')
    await asyncio.get_running_loop().create_connection(lambda: far, sock=service)
    try:
        near.transport.set_protocol(near)
        near.transport.resume_reading()
        await near.lost
        await far.lost
    finally:
        near.transport.abort()
        far.transport.abort()


async def _connect(port: int) -> socket.socket:
    """Raises: DialError."""
    if port in _PRIVATE_PORTS:
        raise DialError("this port is private")
    reason = None
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            for family, host in _LOOPBACK:
                try:
                    return await _connect_to(family, host, port)
                except OSError as error:
                    reason = reason or error.errno
    except TimeoutError as error:
        raise DialError("timed out") from error
    raise DialError(os.strerror(reason or errno.ECONNREFUSED))


async def _connect_to(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    """Raises: OSError."""
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(connection, (host, port))
        if connection.getsockname() == connection.getpeername():
            # Nobody listens, but the kernel picked this very port for our side, and TCP lets a socket meet itself.
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    except BaseException:
        connection.close()
        raise
    return connection


class _End(asyncio.Protocol):
    """One end of a dialled connection: what arrives here leaves at the other, no faster than it is taken there."""

    transport: asyncio.Transport
    other: "_End"
    predecessor: asyncio.BaseProtocol | None = None
    """Who had the connection before, and is still waited on for its end."""

    def __init__(self) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._has_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.other.transport.write(data)

    def eof_received(self) -> bool:
        """A half-close is passed on; the second one ends the connection."""
        self._has_ended = True
        if not self.other.transport.is_closing():
            self.other.transport.write_eof()
        return not self.other._has_ended

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self.other.transport.close()  # after what is still to be written
        else:
            self.other.transport.abort()
        if self.predecessor is not None:
            self.predecessor.connection_lost(exc)
        if not self.lost.done():
            self.lost.set_result(None)

    def pause_writing(self) -> None:
        if not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.other.transport.is_closing():
            self.other.transport.resume_reading()
