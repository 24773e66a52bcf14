"""HTTP as uvicorn speaks it, with the head of an answer and the first of its body in one write.

uvicorn writes the head as soon as it knows it. Most answers here are small and have their body at hand, and a second
system call costs as much as everything the gateway does to find the tool.
"""

import asyncio
from typing import Any, cast

from sandgate_gateway.lean_uvicorn import HttpToolsProtocol

_STATUS_LINE = b"HTTP/1.1 "


class OneWriteProtocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _OneWrite(transport)))


class _OneWrite:
    """A transport that holds a head back until the next write, but no longer than until the loop's next turn."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif data.startswith(_STATUS_LINE):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
