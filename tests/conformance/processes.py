"""Starts the programs under test as real processes, and makes sure that nothing of them is left."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.waiting import BOUND_S

REPOSITORY = Path(__file__).parents[2]

START_S = BOUND_S
STOP_S = BOUND_S


class ProcessError(AssertionError):
    """A program did not start, or left children behind. The text ends with what it wrote on stderr."""


@contextmanager
def running(
    command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Runs `command` in a process group of its own in the repository; stderr goes to `log`.

    At the end: TERM, then a bounded wait. Raises: ProcessError when the program or a child of it has to be killed.
    """
    with log.open("a") as stderr:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    with process:
        try:
            yield process
        finally:
            survivors = _stop(process)
    if survivors:
        raise ProcessError(f"{command[:3]} left {survivors} running\n{tail(log)}")


def first_line(process: subprocess.Popen[str], log: Path) -> str:
    """Raises: ProcessError when the program writes no line within START_S."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline().strip() if readable else ""
    if not line:
        raise ProcessError(f"{process.args!r} printed nothing within {START_S} s\n{tail(log)}")
    return line


def tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def fixture_over_http(log: Path, era: str = "both") -> Iterator[str]:
    """Yields the fixture server's address."""
    with running(fixture_command("--http", "0", "--era", era), log=log) as process:
        yield first_line(process, log)


def fixture_command(*options: str) -> list[str]:
    return [sys.executable, "-m", "tests.fixtures.conformance_server", *options]


def _stop(process: subprocess.Popen[str]) -> list[str]:
    """Names what had to be killed."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    process.terminate()
    deadline = time.monotonic() + STOP_S
    _, alive = psutil.wait_procs(family, timeout=max(0.0, deadline - time.monotonic()))
    names = []
    for each in alive:
        with suppress(psutil.NoSuchProcess):  # it has ended after all
            names.append(" ".join(each.cmdline()[:4]))
            each.kill()
    psutil.wait_procs(alive, timeout=STOP_S)
    return names
