"""The real engine behind a door that a test can shut."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from docker.utils import kwargs_from_env


class Door:
    """A unix socket in front of the real engine that can be shut, cutting what passes through, and opened again."""

    def __init__(self, path: Path) -> None:
        self.url = f"unix://{path}"
        self._path = path
        self._passing: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    async def open(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)
        self._listener.bind(str(self._path))
        self._listener.listen(100)
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    async def shut(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        passing = set(self._passing)
        for task in passing:
            task.cancel()
        if passing:
            await asyncio.wait(passing)
        self._path.unlink(missing_ok=True)

    async def _admit(self) -> None:
        """Returns when a new connection may pass: at once, here."""

    async def _let_through(self, sent: bytes) -> None:
        """Returns when a part of what a client sends may pass: at once, here."""

    async def _let_back(self, answered: bytes) -> None:
        """Returns when a part of what the engine answers may pass: at once, here."""

    def _accept(self, listener: socket.socket) -> None:
        # Not asyncio's server: it forgets to close a connection that it is about to take up when it is closed itself,
        # and whoever made that would wait for an answer until a time limit.
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        connection.setblocking(False)
        task = asyncio.create_task(self._pass(connection))
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)
        # Also where it was cancelled before its first step.
        task.add_done_callback(lambda task: connection.close() if task.cancelled() else None)

    async def _pass(self, connection: socket.socket) -> None:
        await self._admit()
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            engine_reader, engine_writer = await _open_engine()
            try:
                async with asyncio.TaskGroup() as both_ways:
                    both_ways.create_task(_copy(reader, engine_writer, self._let_through))
                    both_ways.create_task(_copy(engine_reader, writer, self._let_back))
            finally:
                engine_writer.close()
        except BaseException:
            writer.transport.abort()  # without what it still had to send
            raise
        writer.close()


class CuttingDoor(Door):
    """Cuts the first connections on which a request is made whose line has this pattern."""

    def __init__(self, path: Path, request: bytes, *, times: int = 1) -> None:
        super().__init__(path)
        self.cuts = 0
        self._request = re.compile(request)
        self._left = times

    async def _pass(self, connection: socket.socket) -> None:
        try:
            await super()._pass(connection)
        except* _CutError:
            self.cuts += 1

    async def _let_through(self, sent: bytes) -> None:
        if self._left and self._request.search(sent.partition(b"\r\n")[0]):
            self._left -= 1
            raise _CutError  # which ends both directions


class _CutError(Exception):
    """A connection is to be cut here."""


async def _open_engine() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = urlsplit(kwargs_from_env().get("base_url", "unix:///var/run/docker.sock").replace("http+unix", "unix"))
    if url.scheme == "unix":
        return await asyncio.open_unix_connection(url.path)
    return await asyncio.open_connection(url.hostname, url.port)


async def _copy(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    let_through: Callable[[bytes], Awaitable[None]],
) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            await let_through(data)
            writer.write(data)
            await writer.drain()
        writer.write_eof()
