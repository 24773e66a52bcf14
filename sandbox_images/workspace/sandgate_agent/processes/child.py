"""One child process in a session of its own: started as a user, signalled as a group, reaped when its owner says so."""

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import termios
from dataclasses import dataclass
from typing import IO, Self

from sandgate_agent.nonblocking import NonblockingFile, until_readable
from sandgate_agent.users import User

_FILE_CREATION_MASK = 0o022

_OOM_SCORE_ADJUSTMENT = 100
"""Makes a command a likelier victim than the agent when memory runs out (proc_pid_oom_score_adj(5)); E2B's value."""


@dataclass(frozen=True, slots=True)
class Command:
    arguments: tuple[str, ...]
    """The program and its arguments; a program without a slash is looked for in the environment's PATH."""
    environment: dict[str, str]
    working_directory: str
    user: User


@dataclass(frozen=True, slots=True)
class TerminalSize:
    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: exactly one of the two is set."""

    code: int | None = None
    signal: int | None = None


class Child:
    """A running process, and this side of its pipes or its terminal."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        *,
        stdin: NonblockingFile | None = None,
        stdout: NonblockingFile | None = None,
        stderr: NonblockingFile | None = None,
        terminal: NonblockingFile | None = None,
    ) -> None:
        self.pid = popen.pid
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.terminal = terminal
        self._popen = popen
        self._process_descriptor = os.pidfd_open(popen.pid)
        with contextlib.suppress(OSError), open(f"/proc/{popen.pid}/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(_OOM_SCORE_ADJUSTMENT))

    @classmethod
    def spawn(cls, command: Command, *, stdin: bool) -> Self:
        """Start with pipes. Blocks for a fork and an exec: call it in a thread.

        Raises: OSError when the program cannot be started.
        """
        popen = subprocess.Popen(
            command.arguments,
            bufsize=0,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=command.working_directory,
            env=command.environment,
            user=command.user.uid,
            group=command.user.gid,
            extra_groups=command.user.groups,
            umask=_FILE_CREATION_MASK,
        )
        return cls(
            popen, stdin=_nonblocking(popen.stdin), stdout=_nonblocking(popen.stdout), stderr=_nonblocking(popen.stderr)
        )

    @classmethod
    def spawn_in_terminal(cls, command: Command, size: TerminalSize) -> Self:
        """Start on a new terminal that controls it. Blocks like `spawn`. Raises: OSError."""
        ours, theirs = os.openpty()
        try:
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, _window_size(size))
            os.fchown(theirs, command.user.uid, -1)
            # setsid(1) makes the session and its controlling terminal in the child, and stays the same process; code of
            # our own between fork and exec would not be safe in a process with threads.
            popen = subprocess.Popen(
                ("setsid", "--ctty", *command.arguments),
                bufsize=0,
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                cwd=command.working_directory,
                env=command.environment,
                user=command.user.uid,
                group=command.user.gid,
                extra_groups=command.user.groups,
                umask=_FILE_CREATION_MASK,
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        return cls(popen, terminal=NonblockingFile(os.fdopen(ours, "r+b", buffering=0)))

    def resize(self, size: TerminalSize) -> None:
        """Raises: ValueError without a terminal."""
        if self.terminal is None:
            raise ValueError("the process has no terminal")
        fcntl.ioctl(self.terminal.fileno(), termios.TIOCSWINSZ, _window_size(size))

    async def exited(self) -> None:
        """Return once the process has ended. It stays unreaped, so its id cannot be given to another process."""
        await until_readable(self._process_descriptor)

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the process and what it started in its group. Silent when all of it has ended."""
        if self._popen.returncode is not None:
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            # In a terminal the group is made by setsid(1) after the start: it may not be there yet.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process_descriptor, number)

    def stop_waiting_for_output(self) -> None:
        """Read only what is already in the pipes or the terminal."""
        for file in (self.stdout, self.stderr, self.terminal):
            if file is not None:
                file.stop_waiting()

    def reap(self) -> Exit:
        """Collect the process and close everything that belonged to it; waits for one that has been killed.

        Safe to repeat.
        """
        returncode = self._popen.wait()
        for file in (self.stdin, self.stdout, self.stderr, self.terminal):
            if file is not None:
                file.close()
        if self._process_descriptor >= 0:
            os.close(self._process_descriptor)
            self._process_descriptor = -1
        return Exit(code=returncode) if returncode >= 0 else Exit(signal=-returncode)


def _nonblocking(file: IO[bytes] | None) -> NonblockingFile | None:
    return None if file is None else NonblockingFile(file)


def _window_size(size: TerminalSize) -> bytes:
    """The kernel's struct winsize: rows, columns, and the two pixel fields nobody uses."""
    return struct.pack("HHHH", size.rows, size.columns, 0, 0)
