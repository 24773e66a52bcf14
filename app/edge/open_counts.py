"""How many requests each sandbox has open, where several processes carry them."""

from __future__ import annotations

import mmap
import os
from collections import deque
from typing import Protocol

_PLACES = 65_536
"""More sandboxes than a machine can have. A place that was left is the last one to be taken again."""
_CELL = 2
"""Bytes."""


class OpenCounts(Protocol):
    def note(self, sandbox_id: str, count: int) -> None:
        """This process has so many open."""

    def elsewhere(self, sandbox_id: str) -> int:
        """How many other processes have open."""


class NobodyElse:
    """The counts of a single process."""

    def note(self, sandbox_id: str, count: int) -> None:
        pass

    def elsewhere(self, sandbox_id: str) -> int:
        return 0


def make_table(rows: int) -> int:
    """An open file without a name: a row for each worker, a place in it for each sandbox."""
    file = os.memfd_create("open-counts")
    os.ftruncate(file, rows * _PLACES * _CELL)
    return file


def clear_row(file: int, row: int) -> None:
    """Its worker is gone, and so is what that had open."""
    os.pwrite(file, bytes(_PLACES * _CELL), row * _PLACES * _CELL)


class Places:
    """Gives each sandbox its place, the same in all rows."""

    def __init__(self) -> None:
        self._fresh = iter(range(_PLACES))
        self._left: deque[int] = deque()

    def take(self) -> int:
        place = next(self._fresh, None)
        return self._left.popleft() if place is None else place

    def leave(self, place: int) -> None:
        self._left.append(place)


class SharedCounts:
    """One worker's view of the table: it writes its own row and reads the others, without a lock."""

    def __init__(self, file: int, row: int, rows: int) -> None:
        self._table = memoryview(mmap.mmap(file, rows * _PLACES * _CELL)).cast("H")
        self._own = row * _PLACES
        self._others = [each * _PLACES for each in range(rows) if each != row]
        self._places: dict[str, int] = {}

    def place(self, sandbox_id: str, place: int) -> None:
        self._places[sandbox_id] = place

    def forget(self, sandbox_id: str) -> None:
        place = self._places.pop(sandbox_id, None)
        if place is not None:
            self._table[self._own + place] = 0

    def note(self, sandbox_id: str, count: int) -> None:
        place = self._places.get(sandbox_id)
        if place is not None:
            self._table[self._own + place] = count

    def elsewhere(self, sandbox_id: str) -> int:
        place = self._places.get(sandbox_id)
        return 0 if place is None else sum(self._table[row + place] for row in self._others)
