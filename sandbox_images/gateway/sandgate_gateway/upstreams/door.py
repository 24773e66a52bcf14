"""An MCP server somewhere else in the pod, behind stdio frames: the agent's door (TCP) or a stdio bridge (unix socket).

docs/ARCHITECTURE.md, 6.2 and 6.3. What goes out is the program's stdin, raw; what comes back are frames.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import orjson

from sandgate_gateway.allowance import Allowance
from sandgate_gateway.configuration import BridgeTransport, StdioDoor, WorkspaceTransport
from sandgate_gateway.framing import FrameKind, FrameReader, MessageTooLongError
from sandgate_gateway.upstreams.bridges import Bridges
from sandgate_gateway.upstreams.connection import CouldNotConnectError, Listener
from sandgate_gateway.upstreams.stdio import StderrLog, describe_exit
from sandgate_gateway.upstreams.stream import StreamConnection

CONNECT_TIMEOUT_S = 5.0

EXIT_TIMEOUT_S = 6.0
"""The other side ends the program within 4 s of the end of its stdin and says so in its last frame."""

Dial = Callable[[Callable[[], asyncio.Protocol]], Awaitable[tuple[asyncio.BaseTransport, asyncio.Protocol]]]


class DoorConnection(StreamConnection):
    """One connection is one run of the program."""

    def __init__(
        self, name: str, listener: Listener, dial: Dial, *, first: bytes, stderr: StderrLog, at: str, silent: str
    ) -> None:
        """`at` and `silent` tell a person where it was tried and, in words after a colon, that nobody was there."""
        super().__init__(name, listener)
        self._dial = dial
        self._first = first
        self._stderr = stderr
        self._stderr_allowance = Allowance()
        self._at = at
        self._silent = silent
        self._frames = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._lost = asyncio.Event()
        self._held: asyncio.TimerHandle | None = None

    @classmethod
    def to_workspace(
        cls,
        name: str,
        listener: Listener,
        transport: WorkspaceTransport,
        door: StdioDoor | None,
        stderr: StderrLog,
    ) -> "DoorConnection":
        if door is None:
            raise CouldNotConnectError("runs in the workspace, but the configuration has no stdioDoor", final=True)
        loop = asyncio.get_running_loop()
        first = {
            "token": door.token,
            "server": name,
            "command": list(transport.command),
            "env": dict(transport.env),
            "cwd": transport.cwd,
            "user": transport.user,
            "repository": transport.repository,
            "install": transport.install,
        }
        return cls(
            name,
            listener,
            lambda protocol: loop.create_connection(protocol, door.host, door.port),
            first=orjson.dumps(first) + b"\n",
            stderr=stderr,
            at="the workspace's stdio door",
            silent="the workspace's stdio door did not answer",
        )

    @classmethod
    def over_bridge(
        cls, name: str, listener: Listener, transport: BridgeTransport, bridges: Bridges, stderr: StderrLog
    ) -> "DoorConnection":
        return cls(
            name,
            listener,
            lambda protocol: bridges.take(transport.token, protocol),
            first=b"",
            stderr=stderr,
            at="the socket its container calls at",
            silent="its container has not called yet",
        )

    async def start(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._dial(lambda: _Door(self))
        except TimeoutError:
            raise CouldNotConnectError(f"could not be reached: {self._silent}") from None
        except OSError as error:
            raise CouldNotConnectError(f"could not be reached at {self._at}: {error.strerror or error}") from error
        if self._first:
            self.write(self._first)

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def hold_back(self, seconds: float) -> None:
        if self._transport is not None and not self._transport.is_closing() and self._held is None:
            self._transport.pause_reading()
            self._held = asyncio.get_running_loop().call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._held = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    async def close(self) -> None:
        transport = self._transport
        if transport is None or self._lost.is_set():
            self.ended("was stopped")
            return
        if transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()
        try:
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                await self._lost.wait()
        except TimeoutError:
            transport.abort()
        self.ended("was stopped")

    # Called by the protocol

    def connected(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def frames_received(self, data: bytes) -> None:
        try:
            frames = self._frames.feed(data)
        except MessageTooLongError as error:
            self.ended(f"sent {error}")
            self._abort()
            return
        for kind, payload in frames:
            match kind:
                case FrameKind.STDOUT:
                    self.received(payload)
                case FrameKind.STDERR:
                    self._stderr.feed(payload)
                    if pause := self._stderr_allowance.spend(len(payload)):
                        self.hold_back(pause)
                case FrameKind.EXIT:
                    self.ended(_describe(payload))
                    self._abort()
                case _:
                    self.ended(f"sent a frame of the unknown kind {kind}")
                    self._abort()

    def connection_lost(self) -> None:
        self._lost.set()
        self.ended("was disconnected without a word; its door refuses the token or was closed")

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _describe(payload: bytes) -> str:
    """The exit frame in words that follow the server's name."""
    try:
        outcome: Any = orjson.loads(payload)
    except ValueError:
        outcome = None
    match outcome:
        case {"error": str(error)}:
            return error
        case {"exitCode": int(code)}:
            return describe_exit(code)
        case {"signal": int(number)}:
            return describe_exit(-number)
        case _:
            return "ended in a way its door could not describe"


class _Door(asyncio.Protocol):
    def __init__(self, connection: DoorConnection) -> None:
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, because the transports of uvloop do not inherit from asyncio's.
        self._connection.connected(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        self._connection.frames_received(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
