"""Waits, within a bound, for what happens in another thread or process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

BOUND_S = 30.0
"""No test that passes comes near it; a machine with other work on its hands may take some of it."""


async def until(condition: Callable[[], object]) -> None:
    """Returns once the condition holds."""
    async with asyncio.timeout(BOUND_S):
        while not condition():
            await asyncio.sleep(0.005)


async def settled(value: Callable[[], int]) -> int:
    """The value once it has stood still for a while."""
    async with asyncio.timeout(BOUND_S):
        last, still = value(), 0
        while still < 20:
            await asyncio.sleep(0.02)
            still = still + 1 if value() == last else 0
            last = value()
    return last
