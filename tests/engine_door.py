"""The real engine behind a door that a test can shut."""

from __future__ import annotations

import asyncio
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
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._connected, self._path)

    async def shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        passing = set(self._passing)
        for task in passing:
            task.cancel()
        if passing:
            await asyncio.wait(passing)
        self._path.unlink(missing_ok=True)

    async def _admit(self) -> None:
        """Returns when a new connection may pass: at once, here."""

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass(reader, writer))
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)
        task.add_done_callback(lambda _: writer.close())  # also where it was cancelled before its first step

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._admit()
        engine_reader, engine_writer = await _open_engine()
        try:
            async with asyncio.TaskGroup() as both_ways:
                both_ways.create_task(_copy(reader, engine_writer))
                both_ways.create_task(_copy(engine_reader, writer))
        finally:
            engine_writer.close()


async def _open_engine() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = urlsplit(kwargs_from_env().get("base_url", "unix:///var/run/docker.sock").replace("http+unix", "unix"))
    if url.scheme == "unix":
        return await asyncio.open_unix_connection(url.path)
    return await asyncio.open_connection(url.hostname, url.port)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
