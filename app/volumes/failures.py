"""What callers of the volume room are told when the container engine fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import EngineError
from app.sandboxes.failures import engine_problem


@contextmanager
def engine_errors_mapped(what: str) -> Iterator[None]:
    """`what` has happened, without a full stop: "Volume 'x' could not be made". Raises: Problem."""
    try:
        yield
    except EngineError as error:
        raise engine_problem(error, what) from error
