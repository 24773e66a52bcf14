"""An MCP server as a child process of the gateway: started, watched and ended here."""

import asyncio
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sandgate_gateway.allowance import Allowance
from sandgate_gateway.upstreams.connection import CouldNotConnectError, Listener
from sandgate_gateway.upstreams.processes import kill_processes_of
from sandgate_gateway.upstreams.stream import StreamConnection

STDIN_CLOSED_GRACE_S = 2.0
TERM_GRACE_S = 2.0
"""Shutdown order of the MCP specification (2025-11-25, basic/lifecycle, stdio): close stdin, wait, TERM, wait, KILL."""

EXIT_AFTER_EOF_S = 0.5

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
                with suppress(OSError):  # as in `_reopen`
                    self._file.write(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-_MAX_STDERR_LINE:]
        for line in lines[-2 * STDERR_LINES :]:  # some may be blank
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
        self._stderr_allowance = Allowance()
        self._process: subprocess.Popen[bytes] | None = None
        self._exited = asyncio.Event()
        self._stdin: asyncio.WriteTransport | None = None
        self._stdout: asyncio.ReadTransport | None = None
        self._stderr_pipe: asyncio.ReadTransport | None = None
        self._closing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        process = self._process = self._spawn()
        pidfd = os.pidfd_open(process.pid)
        loop.add_reader(pidfd, self._on_exit, pidfd)
        self._stdin, _ = await loop.connect_write_pipe(lambda: _Stdin(self), process.stdin)
        self._stdout, _ = await loop.connect_read_pipe(
            lambda: _Output(self.received, lost=lambda: self._half_closed("stdout")), process.stdout
        )
        self._stderr_pipe, _ = await loop.connect_read_pipe(lambda: _Output(self._log), process.stderr)

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

    def hold_back(self, seconds: float) -> None:
        _hold_back(self._stdout, seconds)

    def _log(self, data: bytes) -> None:
        self._stderr.feed(data)
        if pause := self._stderr_allowance.spend(len(data)):
            _hold_back(self._stderr_pipe, pause)

    def stdin_lost(self) -> None:
        self._half_closed("stdin")

    def _half_closed(self, pipe: str) -> None:
        """Nothing more can be said to the server, or by it. Mostly because it ends; then that tells more."""
        asyncio.get_running_loop().call_later(EXIT_AFTER_EOF_S, self.ended, f"closed its {pipe}")

    async def close(self) -> None:
        """End the whole process group, politely first, and what else runs under a uid of the server's own. At most
        STDIN_CLOSED_GRACE_S + TERM_GRACE_S and a moment."""
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
        for reader in (self._stdout, self._stderr_pipe):
            if reader is not None:
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
        is_replaced = self._closing is not None and self._closing.done()
        if self._identity is not None and not is_replaced:
            kill_processes_of(self._identity.uid)
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


def _hold_back(pipe: asyncio.ReadTransport | None, seconds: float) -> None:
    if pipe is None or pipe.is_closing():
        return
    pipe.pause_reading()
    asyncio.get_running_loop().call_later(seconds, _go_on, pipe)


def _go_on(pipe: asyncio.ReadTransport) -> None:
    if not pipe.is_closing():
        pipe.resume_reading()


class _Output(asyncio.Protocol):
    """What the child writes, on one of its two pipes."""

    def __init__(self, sink: Callable[[bytes], None], lost: Callable[[], None] | None = None) -> None:
        self._sink = sink
        self._lost = lost

    def data_received(self, data: bytes) -> None:
        self._sink(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost is not None:
            self._lost()


class _Stdin(asyncio.BaseProtocol):
    """What the child reads: reports the flow of writing."""

    def __init__(self, connection: ChildConnection) -> None:
        self._connection = connection

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.stdin_lost()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
