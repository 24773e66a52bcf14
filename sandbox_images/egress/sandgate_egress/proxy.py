"""Takes diverted connections, asks what they are for, and joins those that may be with the host they name."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import cast

from sandgate_egress.first_bytes import LONGEST, Incomplete, NoName, host_of_http, host_of_tls
from sandgate_egress.hosts import AllowedHosts

_FIRST_BYTES_S = 15.0
_CONNECT_S = 30.0
_CONNECTIONS_PER_SANDBOX = 512
_CONNECTING_PER_SANDBOX = 16
"""Looking up a name holds a thread; so no sandbox may take them all."""
_CHUNK = 64 * 1024
_KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}
"""A sandbox that is killed says no goodbye."""

_ACCESS_DENIED = 49
_INTERNAL_ERROR = 80
"""TLS alerts (RFC 8446, section 6.2)."""


@dataclass(frozen=True, slots=True)
class Listener:
    address: str
    port: int
    """Where diverted connections come in."""
    target_port: int
    """The port they were meant for, and go on to."""
    is_tls: bool


@dataclass(slots=True, eq=False)
class _Connection:
    task: asyncio.Task[None]
    host: str | None = None
    """None while it is not known yet."""

    def close(self, writer: asyncio.StreamWriter) -> None:
        """Hard when the connection was taken back: what is still on its way is not to arrive."""
        if self.task.cancelling():
            writer.transport.abort()
        else:
            writer.close()


@dataclass(slots=True, eq=False)
class _Sandbox:
    hosts: AllowedHosts = AllowedHosts(())
    connections: set[_Connection] = field(default_factory=set)
    connecting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CONNECTING_PER_SANDBOX))

    def limit_to(self, hosts: AllowedHosts) -> None:
        self.hosts = hosts
        for connection in self.connections:
            # Those whose host is not known yet are judged by the new hosts when it is.
            if connection.host is not None and connection.host not in hosts:
                connection.task.cancel()


class Proxy:
    """Sandboxes are told apart by their addresses, which the bridge they sit on does not let them choose."""

    def __init__(self) -> None:
        self._sandboxes: dict[str, _Sandbox] = {}
        self._connections: set[_Connection] = set()

    def allow(self, changes: Mapping[str, Sequence[str] | None]) -> None:
        """Replace what sandboxes may reach, by their addresses; None forgets one. Ends what is open and may not be."""
        for address, patterns in changes.items():
            sandbox = self._sandboxes.get(address)
            if patterns is None:
                self._sandboxes.pop(address, None)
            elif sandbox is None:
                sandbox = self._sandboxes[address] = _Sandbox()
            if sandbox is not None:
                sandbox.limit_to(AllowedHosts(patterns or ()))

    def allowed(self) -> dict[str, tuple[str, ...]]:
        return {address: sandbox.hosts.patterns for address, sandbox in self._sandboxes.items()}

    @asynccontextmanager
    async def serve(self, listeners: Sequence[Listener]) -> AsyncIterator[list[int]]:
        """Listens until the context ends; gives the ports. Raises: OSError for one that is taken."""
        async with AsyncExitStack() as stack:
            ports = []
            for listener in listeners:
                server = await asyncio.start_server(
                    self._server(listener), listener.address, listener.port, limit=_CHUNK
                )
                await stack.enter_async_context(server)
                ports.append(server.sockets[0].getsockname()[1])
            try:
                yield ports
            finally:
                tasks = [connection.task for connection in self._connections]
                for task in tasks:
                    task.cancel()
                if tasks:
                    await asyncio.wait(tasks)

    def _server(self, listener: Listener) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = _Connection(cast("asyncio.Task[None]", asyncio.current_task()))
            self._connections.add(connection)
            sandbox = self._sandboxes.get(writer.get_extra_info("peername")[0])
            try:
                if sandbox is not None and len(sandbox.connections) < _CONNECTIONS_PER_SANDBOX:
                    sandbox.connections.add(connection)
                    await _Exchange(listener, sandbox, connection, reader, writer).run()
            except OSError:
                return  # the sandbox is gone, or says nothing in time
            finally:
                self._connections.discard(connection)
                if sandbox is not None:
                    sandbox.connections.discard(connection)
                connection.close(writer)

        return serve


class _Exchange:
    """One diverted connection."""

    def __init__(
        self,
        listener: Listener,
        sandbox: _Sandbox,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._listener = listener
        self._sandbox = sandbox
        self._connection = connection
        self._reader = reader
        self._writer = writer

    async def run(self) -> None:
        _keep_alive(self._writer)
        try:
            async with asyncio.timeout(_FIRST_BYTES_S):
                host, first = await self._host()
        except NoName as problem:
            await self._refuse(400, f"This sandbox may only reach some hosts, and this names none ({problem}).")
            return
        if host not in self._sandbox.hosts:
            await self._refuse(
                403, f"This sandbox may not reach {host}: allowOut of its network rules does not name it."
            )
            return
        self._connection.host = host
        try:
            async with self._sandbox.connecting, asyncio.timeout(_CONNECT_S):
                upstream = await asyncio.open_connection(
                    host, self._listener.target_port, family=socket.AF_INET, happy_eyeballs_delay=0.25, limit=_CHUNK
                )
        except (OSError, TimeoutError) as problem:
            await self._refuse(502, f"{host} cannot be reached: {problem or 'it does not answer'}.")
            return
        await self._join(first, *upstream)

    async def _host(self) -> tuple[str, bytes]:
        """The name, and the bytes it was found in. Raises: NoName."""
        read_host = host_of_tls if self._listener.is_tls else host_of_http
        data = b""
        while True:
            chunk = await self._reader.read(_CHUNK)
            data += chunk
            try:
                return read_host(data), data
            except Incomplete:
                if not chunk or len(data) > LONGEST:
                    raise NoName("it is not among the first bytes") from None

    async def _refuse(self, status: int, reason: str) -> None:
        if self._listener.is_tls:
            alert = _INTERNAL_ERROR if status == 502 else _ACCESS_DENIED
            self._writer.write(bytes([21, 3, 1, 0, 2, 2, alert]))
        else:
            body = f"{reason}\n".encode()
            head = f"HTTP/1.1 {status} {_PHRASES[status]}\r\nConnection: close\r\nContent-Type: text/plain\r\n"
            self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await self._writer.drain()

    async def _join(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _keep_alive(writer)
        try:
            writer.write(first)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(self._reader, writer), name="to host")
                group.create_task(_pump(reader, self._writer), name="to sandbox")
        except* OSError:
            pass  # one end is gone, and closing tells the other
        finally:
            self._connection.close(writer)


_PHRASES = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway"}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK):
        writer.write(chunk)
        await writer.drain()
    with suppress(OSError):
        writer.write_eof()


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
