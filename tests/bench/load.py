"""Load: the same prebuilt request again and again, over keep-alive connections or a server's own stdin and stdout.

Closed loop: each connection has one request under way and sends the next when the answer is complete.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import uvloop

from tests.bench.results import percentile

_ANSWER_TIMEOUT_S = 30.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class LoadError(Exception):
    """An answer was not what a successful call gives, or none came."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a round of load gave."""

    seconds: float
    latencies_ms: list[float] = field(repr=False)

    @property
    def calls(self) -> int:
        return len(self.latencies_ms)

    @property
    def per_second(self) -> float:
        return self.calls / self.seconds

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.latencies_ms)

    @property
    def p99_ms(self) -> float:
        return percentile(self.latencies_ms, 99)


def over_http(host: str, port: int, requests: Sequence[bytes], *, seconds: float) -> Load:
    """One connection for each request, which is sent over and over. Raises: LoadError, TimeoutError, OSError."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_over_http(host, port, requests, seconds))


def over_stdio(command: Sequence[str], requests: Sequence[bytes], *, seconds: float) -> Load:
    """To one process, with all requests under way at once; they are JSON-RPC with different ids.

    Raises: LoadError, TimeoutError, OSError.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_over_stdio(command, requests, seconds))


class _Round:
    """The clock and the answers of one round, shared by its connections."""

    def __init__(self, seconds: float) -> None:
        self.latencies_ms: list[float] = []
        self._began = time.perf_counter()
        self._ends_at = self._began + seconds
        self._limit_s = seconds + _ANSWER_TIMEOUT_S

    def answered(self, sent_at: float) -> bool:
        """Take down an answer; false once it is time to stop."""
        now = time.perf_counter()
        self.latencies_ms.append((now - sent_at) * 1000)
        return now < self._ends_at

    async def until_done(self, connections: Sequence[asyncio.Future[None]]) -> Load:
        async with asyncio.timeout(self._limit_s):
            for connection in connections:
                await connection
        return Load(time.perf_counter() - self._began, self.latencies_ms)


async def _over_http(host: str, port: int, requests: Sequence[bytes], seconds: float) -> Load:
    loop = asyncio.get_running_loop()
    callers: list[_HttpCaller] = []
    try:
        for _ in requests:
            _, caller = await loop.create_connection(_HttpCaller, host, port)
            callers.append(caller)
        this_round = _Round(seconds)
        for caller, request in zip(callers, requests, strict=True):
            caller.begin(request, this_round)
        return await this_round.until_done([caller.done for caller in callers])
    finally:
        for caller in callers:
            caller.close()


async def _over_stdio(command: Sequence[str], requests: Sequence[bytes], seconds: float) -> Load:
    loop = asyncio.get_running_loop()
    transport, caller = await loop.subprocess_exec(_StdioCaller, *command, stderr=None)
    try:
        await caller.warm_up(requests[0])
        this_round = _Round(seconds)
        caller.begin(requests, this_round)
        return await this_round.until_done([caller.done])
    finally:
        transport.close()
        await caller.exited.wait()


class _HttpCaller(asyncio.Protocol):
    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport
        self._round: _Round
        self._request = b""
        self._sent_at = 0.0
        self._received = b""

    def begin(self, request: bytes, this_round: _Round) -> None:
        self._request, self._round = request, this_round
        self._send()

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses of asyncio's

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_ends = self._received.find(b"\r\n\r\n")
        if head_ends < 0:
            return
        if not self._received.startswith(b"HTTP/1.1 200"):
            self._fail(f"unexpected answer: {self._received[:500]!r}")
        elif self._is_complete(head_ends):
            body, self._received = self._received[head_ends + 4 :], b""
            if b'"result":' not in body:
                self._fail(f"the call failed: {body[:500]!r}")
            elif self._round.answered(self._sent_at):
                self._send()
            elif not self.done.done():
                self.done.set_result(None)

    def _is_complete(self, head_ends: int) -> bool:
        """Whether all of the answer is here: JSON of a known length, or the one event of a chunked stream."""
        length = _LENGTH.search(self._received, 0, head_ends + 2)
        if length is not None:
            return len(self._received) >= head_ends + 4 + int(length[1])
        return bool(_CHUNKED.search(self._received, 0, head_ends + 2)) and self._received.endswith(_LAST_CHUNK)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was closed: {exc}")

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(LoadError(why))


class _StdioCaller(asyncio.SubprocessProtocol):
    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.exited = asyncio.Event()
        self._stdin: asyncio.WriteTransport
        self._round = _Round(0)
        self._requests: dict[int, bytes] = {}
        self._sent_at: dict[int, float] = {}
        self._received = b""

    async def warm_up(self, request: bytes) -> None:
        """Returns once the process has answered, so that its start is not measured."""
        self.begin([request], _Round(0))
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            await self.done

    def begin(self, requests: Sequence[bytes], this_round: _Round) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._round = this_round
        self._requests = {json.loads(request)["id"]: request + b"\n" for request in requests}
        for identifier in self._requests:
            self._send(identifier)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._stdin = cast(asyncio.WriteTransport, cast(asyncio.SubprocessTransport, transport).get_pipe_transport(0))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            identifier = answer["id"]
            if "result" not in answer:
                self._fail(f"the call failed: {line[:500]!r}")
            elif self._round.answered(self._sent_at.pop(identifier)):
                self._send(identifier)
            elif not self._sent_at and not self.done.done():
                self.done.set_result(None)

    def process_exited(self) -> None:
        self._fail("the server exited")
        self.exited.set()

    def _send(self, identifier: int) -> None:
        self._sent_at[identifier] = time.perf_counter()
        self._stdin.write(self._requests[identifier])

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(LoadError(why))
