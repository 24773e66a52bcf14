"""Stdio frames: what a run of a server says, over one connection (ARCHITECTURE.md, section 6.2)."""

import asyncio
import struct
from enum import IntEnum
from typing import Any

import orjson

_PREFIX = struct.Struct(">BI")


class FrameKind(IntEnum):
    STDOUT = 1
    STDERR = 2
    EXIT = 3


class FrameWriter:
    """Writes whole frames; waits while the gateway reads more slowly than the server writes."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def output(self, kind: FrameKind, data: bytes) -> None:
        """Raises: ConnectionError when nobody is there to read."""
        self._writer.write(_PREFIX.pack(kind, len(data)) + data)
        await self._writer.drain()

    async def exit(self, message: dict[str, Any]) -> None:
        """The last frame. Raises: ConnectionError."""
        await self.output(FrameKind.EXIT, orjson.dumps(message))
