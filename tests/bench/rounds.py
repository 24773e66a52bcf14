"""Repeating a measurement, within bounds."""

from __future__ import annotations

import time
from collections.abc import Iterator


def rounds(wanted: int, *, budget_s: float) -> Iterator[int]:
    """Numbers of rounds. The first one always takes place; none begins once the budget is used up."""
    ends_at = time.monotonic() + budget_s
    for number in range(wanted):
        if number and time.monotonic() > ends_at:
            return
        yield number
