"""Memory of a server's processes, where the engine runs on this host and they can be seen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")


def memory_mib(program_directory: str) -> float | None:
    """Proportional set size of the processes started from a directory, and of their children; None if none is seen."""
    parents = dict(_parents())
    roots = {pid for pid in parents if program_directory.encode() in _read(_PROC / str(pid) / "cmdline")}
    family = {pid for pid in parents if _has_ancestor(pid, roots, parents)}
    sizes = [int(match[1]) for pid in family if (match := re.search(rb"^Pss:\s+(\d+) kB", _rollup(pid), re.MULTILINE))]
    return sum(sizes) / 1024 if sizes else None


def _parents() -> Iterator[tuple[int, int]]:
    for directory in _PROC.glob("[0-9]*"):
        # The name in parentheses may hold anything; what follows it is state and parent (proc_pid_stat(5)).
        fields = _read(directory / "stat").rpartition(b")")[2].split()
        if len(fields) > 1:
            yield int(directory.name), int(fields[1])


def _has_ancestor(pid: int, roots: set[int], parents: dict[int, int]) -> bool:
    while pid in parents:
        if pid in roots:
            return True
        pid = parents[pid]
    return False


def _rollup(pid: int) -> bytes:
    return _read(_PROC / str(pid) / "smaps_rollup")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it has ended, or is not ours to look at
        return b""
