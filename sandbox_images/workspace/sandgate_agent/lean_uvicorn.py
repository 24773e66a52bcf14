"""uvicorn's server without its command line, its logging set-up, its signal handlers and its clock.

Importing any part of uvicorn imports the whole of its command line (click, the reloader, multiprocessing) and what
reads logging configurations. That is 5 MB of memory in every idle sandbox for something the agent never calls, so
modules without content stand in their places.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Iterator
from types import FrameType, ModuleType

if "uvicorn.main" not in sys.modules:
    _no_command_line = ModuleType("uvicorn.main")
    for name in "Server", "main", "run":
        setattr(_no_command_line, name, None)
    sys.modules["uvicorn.main"] = _no_command_line

if "logging.config" not in sys.modules:
    sys.modules["logging.config"] = logging.config = ModuleType("stand-in")

import uvicorn.server
from uvicorn.config import Config

if sys.modules["logging.config"].__name__ == "stand-in":
    del sys.modules["logging.config"], logging.config  # whoever else wants it gets the real one

__all__ = ["Config", "Server"]


class Server(uvicorn.server.Server):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._is_told_to_stop = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would raise them again at its end, before the rest is cleaned up."""
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._is_told_to_stop.set()

    async def main_loop(self) -> None:
        """Wait. uvicorn's own loop wakes ten times a second for a Date header and a request limit, unused here."""
        await self._is_told_to_stop.wait()
