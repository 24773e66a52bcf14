"""What the gateway sends on one connection of the stdio door, and the news that it has hung up."""

import asyncio
import contextlib
import select
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from sandgate_agent.nonblocking import CHUNK


class Inbox:
    """A context manager for as long as the connection is of interest.

    The stream's own buffer is bounded, and a connection that is not read tells the event loop nothing. So the kernel is
    asked by a second epoll(7), which sees the peer's end behind bytes that nobody has taken yet.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._watch = select.epoll()
        self.ended = asyncio.Event()
        """The gateway has sent all it will send, or is gone."""

    def __enter__(self) -> Self:
        if self._writer.is_closing():  # its number may belong to another file by now
            self.ended.set()
        else:
            # Errors and a full hang-up are told unasked.
            self._watch.register(self._writer.get_extra_info("socket"), select.EPOLLRDHUP)
            asyncio.get_running_loop().add_reader(self._watch.fileno(), self._on_hang_up)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop_watching()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Until the end; a lost connection is one too."""
        with contextlib.suppress(ConnectionError):
            while chunk := await self._reader.read(CHUNK):
                yield chunk
        self.ended.set()

    def _on_hang_up(self) -> None:
        self._stop_watching()
        self.ended.set()

    def _stop_watching(self) -> None:
        if not self._watch.closed:
            asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._watch.close()
