"""The folder all state lies in, and one control plane to it: two would take each other's sandboxes for leftovers."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import SandgateError


class HomeError(SandgateError):
    """The home cannot be written to, or is in use."""


def make_home(home: Path) -> None:
    """Mode 0700. Safe to repeat. Raises: HomeError if nothing can be written there."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)
    except OSError as error:
        raise HomeError(f"{home} cannot be used: {error.strerror}. Make it writable, or set SANDGATE_HOME.") from error
    if not os.access(home, os.W_OK | os.X_OK):
        raise HomeError(f"{home} cannot be used: it is not writable. Make it so, or set SANDGATE_HOME.")


def write_file(file: Path, content: bytes) -> None:
    """Mode 0600. All or nothing: a crash in between leaves what was there before."""
    fresh = file.with_name(f"{file.name}.new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(file)


@contextmanager
def home_locked(home: Path) -> Iterator[None]:
    """Make the home and hold it for this process, which is going to serve it. Raises: HomeError."""
    make_home(home)
    with _held(home / "lock", f"A Sandgate is running with {home}. Stop it first, or set SANDGATE_HOME."):
        yield


@contextmanager
def trials_locked(home: Path) -> Iterator[None]:
    """Let nobody else try servers with this home: their pods are all swept when one of them is done.

    Raises: HomeError.
    """
    make_home(home)
    what = "`sandgate catalog install` or `sandgate catalog verify`"
    with _held(home / "trials-lock", f"Another {what} is trying servers with {home}. Try again when it is done."):
        yield


@contextmanager
def _held(file: Path, refusal: str) -> Iterator[None]:
    """The lock goes with the process, however that ends."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HomeError(refusal) from None
        yield
    finally:
        os.close(lock)
