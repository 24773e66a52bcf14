"""Processes by the user they run under, as /proc tells (proc_pid_status(5))."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROUNDS = 10


def kill_processes_of(uid: int) -> None:
    """KILL every process of this user, those with a process group of their own as well: browsers have one. Looks again
    until it finds no other ones, because they may start each other meanwhile."""
    killed: set[int] = set()
    for _ in range(_ROUNDS):
        found = set(_processes_of(uid)) - killed
        if not found:
            return
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed |= found


def _processes_of(uid: int) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError):  # it is gone
                if _real_uid(Path("/proc", name, "status").read_bytes()) == uid:
                    yield int(name)


def _real_uid(status: bytes) -> int:
    _, _, rest = status.partition(b"\nUid:\t")
    return int(rest.partition(b"\t")[0])
