"""uvicorn's server without its command line and without its clock.

Importing any part of uvicorn imports the whole of its command line: click, the reloader, multiprocessing. That is 4 MB
of memory in every idle sandbox for something the agent never calls, so a module without content stands in its place.
"""

import asyncio
import sys
from types import FrameType, ModuleType

if "uvicorn.main" not in sys.modules:
    _no_command_line = ModuleType("uvicorn.main")
    for name in "Server", "main", "run":
        setattr(_no_command_line, name, None)
    sys.modules["uvicorn.main"] = _no_command_line

import uvicorn.server
from uvicorn.config import Config

__all__ = ["Config", "Server"]


class Server(uvicorn.server.Server):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._is_told_to_stop = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._is_told_to_stop.set()

    async def main_loop(self) -> None:
        """Wait. uvicorn's own loop wakes ten times a second for a Date header and a request limit, unused here."""
        await self._is_told_to_stop.wait()
