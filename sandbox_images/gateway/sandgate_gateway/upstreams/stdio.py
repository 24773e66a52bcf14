"""An MCP server as a child process of the gateway: started, watched and ended here."""

import asyncio
import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sandgate_gateway.upstreams.connection import CouldNotConnectError, Listener
from sandgate_gateway.upstreams.stream import StreamConnection

STDIN_CLOSED_GRACE_S = 2.0
TERM_GRACE_S = 2.0
"""Shutdown order of the MCP specification (2025-11-25, basic/lifecycle, stdio): close stdin, wait, TERM, wait, KILL."""

STDERR_LINES = 20
MAX_LOG_BYTES = 5 * 1024 * 1024
_MAX_STDERR_LINE = 4096


@dataclass(frozen=True)
class Identity:
    """The uid and gid a server runs under."""

    uid: int
    gid: int


class StderrLog:
    """A server's stderr: its last lines in memory, the rest in a file that starts anew when it is full."""

    def __init__(self, path: Path | None) -> None:
        self.lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._path = path
        self._file: IO[bytes] | None = None
        self._partial = b""

    def feed(self, data: bytes) -> None:
        if self._path is not None:
            if self._file is None or self._file.tell() > MAX_LOG_BYTES:
                self._reopen()
            if self._file is not None:
                self._file.write(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-_MAX_STDERR_LINE:]
        for line in lines:
            if text := line.strip().decode("utf-8", "replace"):
                self.lines.append(text[:_MAX_STDERR_LINE])

    def snapshot(self) -> list[str]:
        """The last lines, an unfinished one included."""
        partial = self._partial.strip().decode("utf-8", "replace")
        return [*self.lines, partial][-STDERR_LINES:] if partial else list(self.lines)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _reopen(self) -> None:
        mode = "ab" if self._file is None else "wb"
        self.close()
        if self._path is not None:
            with suppress(OSError):  # a full disk must not take the server down
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self._path, mode, buffering=0, opener=_private_opener)  # noqa: SIM115 (kept open)


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class ChildConnection(StreamConnection):
    """One run of one program."""

    def __init__(
        self,
        name: str,
        listener: Listener,
        *,
        command: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        identity: Identity | None,
        stderr: StderrLog,
    ) -> None:
        super().__init__(name, listener)
        self._command = list(command)
        self._env = dict(env)
        self._cwd = cwd
        self._identity = identity
        self._stderr = stderr
        self._process: subprocess.Popen[bytes] | None = None
        self._exited = asyncio.Event()
        self._stdin: asyncio.WriteTransport | None = None
        self._readers: list[asyncio.ReadTransport] = []
        self._closing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        process = self._process = self._spawn()
        pidfd = os.pidfd_open(process.pid)
        loop.add_reader(pidfd, self._on_exit, pidfd)
        self._stdin, _ = await loop.connect_write_pipe(lambda: _Pipe(connection=self), process.stdin)
        stdout, _ = await loop.connect_read_pipe(lambda: _Pipe(sink=self.received), process.stdout)
        stderr, _ = await loop.connect_read_pipe(lambda: _Pipe(sink=self._stderr.feed), process.stderr)
        self._readers = [stdout, stderr]

    def _spawn(self) -> "subprocess.Popen[bytes]":
        identity: dict[str, Any] = {}
        if self._identity is not None:
            identity = {"user": self._identity.uid, "group": self._identity.gid, "extra_groups": []}
        try:
            return subprocess.Popen(  # returns once exec has succeeded: milliseconds
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
                umask=0o077,
                **identity,
            )
        except OSError as error:
            raise CouldNotConnectError(f"could not be started: {error.strerror or error}", final=True) from error

    def write(self, data: bytes) -> None:
        if self._stdin is not None and not self._stdin.is_closing():
            self._stdin.write(data)

    async def close(self) -> None:
        """End the whole process group, politely first. At most STDIN_CLOSED_GRACE_S + TERM_GRACE_S and a moment."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._shut_down(), name=f"stop {self._name}")
        await asyncio.shield(self._closing)

    async def _shut_down(self) -> None:
        if self._stdin is not None:
            self._stdin.close()
        if self._process is not None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                if await self._exits_within(STDIN_CLOSED_GRACE_S if number is signal.SIGTERM else TERM_GRACE_S):
                    break
                self._signal_group(number)
            await self._exits_within(TERM_GRACE_S)
        for reader in self._readers:
            reader.close()
        self.ended("was stopped")

    async def _exits_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._exited.wait()
        except TimeoutError:
            return False
        return True

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _on_exit(self, pidfd: int) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(pidfd)
        os.close(pidfd)
        assert self._process is not None
        # Children it left behind go first: until the leader is reaped nobody else can get its process group id.
        self._signal_group(signal.SIGKILL)
        code = self._process.wait()  # a readable pidfd means the process has ended: returns at once
        self._exited.set()
        # What it wrote last may still be in the pipes.
        loop.call_later(0.05, self.ended, describe_exit(code))


def describe_exit(code: int) -> str:
    """In words that follow the server's name; negative codes are signals, as in subprocess."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was ended by signal {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


class _Pipe(asyncio.Protocol):
    """One end of a pipe to the child: reads into a sink, or reports the flow of writing."""

    def __init__(self, *, sink: Any = None, connection: StreamConnection | None = None) -> None:
        self._sink = sink
        self._connection = connection

    def data_received(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink(data)

    def pause_writing(self) -> None:
        if self._connection is not None:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        if self._connection is not None:
            self._connection.resume_writing()
