"""Messages between the control plane and an edge worker: JSON, a line each, on a socket pair that only the two hold.

    control plane → worker
        {"begin": [<sandbox>, …], "awaited": ["<id>", …], "domain": "…" | null, "step": n}
                                         once, after `hello`; the worker serves from then on
        {"put": <sandbox>, "step": n}    {"remove": "<id>", "step": n}    {"step": n}
        {"answer": <call>, "problem": null | [<status>, "<message>"]}
        {"stop": true}
    worker → control plane
        {"hello": true}
        {"at": n}                        everything up to step n holds for the worker's next request
        {"resume": "<id>", "call": <call>}

Steps count up from one message to the next. A <sandbox> is a `replica.KnownSandbox`. The end of the connection ends the
worker: without the control plane it could not know what is still true.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

import orjson


def encode(message: Mapping[str, Any]) -> bytes:
    return orjson.dumps(message) + b"\n"


class Lines(asyncio.Protocol):
    """One end of the connection."""

    def __init__(self, on_message: Callable[[dict[str, Any]], None], on_end: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._begun = b""

    def write(self, line: bytes) -> None:
        """Send what `encode` gave. What cannot be sent any more is dropped."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(line)

    def send(self, message: Mapping[str, Any]) -> None:
        self.write(encode(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._begun = (self._begun + data).split(b"\n")
        for line in lines:
            self._on_message(orjson.loads(line))

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_end()
