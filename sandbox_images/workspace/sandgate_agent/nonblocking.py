"""Reading and writing a pipe or a terminal without blocking the event loop."""

import asyncio
import errno
import os
from collections.abc import Callable
from typing import IO, Any

CHUNK = 1 << 16
"""Bytes read at once: the default capacity of a Linux pipe."""


async def until_readable(descriptor: int) -> None:
    """Return once there is something to read: data or the end of a pipe, the exit of a process."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await readable
    finally:
        loop.remove_reader(descriptor)


class NonblockingFile:
    """Owns a file that can be waited for: a pipe's end, or a terminal's master side."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._descriptor = file.fileno()
        self._is_last_call = False
        self._waiting: set[asyncio.Future[None]] = set()
        os.set_blocking(self._descriptor, False)

    def fileno(self) -> int:
        return self._descriptor

    async def read(self) -> bytes:
        """At most CHUNK bytes; empty at the end, or when there is nothing more after `stop_waiting`.

        Raises: BrokenPipeError once it is closed.
        """
        while True:
            self._check_open()
            try:
                return os.read(self._descriptor, CHUNK)
            except BlockingIOError:
                if self._is_last_call:
                    return b""
                loop = asyncio.get_running_loop()
                await self._ready(loop.add_reader, loop.remove_reader)
            except OSError as error:
                # How Linux says that nobody has the other side of a terminal open any more.
                if error.errno == errno.EIO:
                    return b""
                raise

    async def write(self, data: bytes) -> None:
        """All of it, waiting while the other side does not read.

        Raises: OSError, a BrokenPipeError when nobody can read it or it is closed.
        """
        view = memoryview(data)
        while view:
            self._check_open()
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await self._ready(loop.add_writer, loop.remove_writer)

    def stop_waiting(self) -> None:
        """From now on read only what is already there: for pipes that somebody may hold open for ever."""
        self._is_last_call = True
        for ready in self._waiting:
            if not ready.done():
                ready.set_result(None)

    def close(self) -> None:
        """Safe to repeat. Whoever still waits gets a BrokenPipeError."""
        if self._file.closed:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._descriptor)
        loop.remove_writer(self._descriptor)
        self._file.close()
        for ready in self._waiting:
            if not ready.done():
                ready.set_exception(_broken_pipe())

    def _check_open(self) -> None:
        # Once closed, the number may already belong to another file.
        if self._file.closed:
            raise _broken_pipe()

    async def _ready(self, add: Callable[..., Any], remove: Callable[[int], Any]) -> None:
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        self._waiting.add(ready)
        add(self._descriptor, wake)
        try:
            await ready
        finally:
            self._waiting.discard(ready)
            if not self._file.closed:
                remove(self._descriptor)


def _broken_pipe() -> BrokenPipeError:
    return BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
