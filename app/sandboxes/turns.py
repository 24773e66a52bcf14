"""A few at a time, in the order they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.errors import TooBusy


class Turns:
    def __init__(self, *, at_once: int, within_s: float) -> None:
        """`within_s` is how long one waits for a turn."""
        self._slots = asyncio.Semaphore(at_once)
        self._within_s = within_s

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Entered when it is one's turn, which lasts until left. Raises: TooBusy if it does not come in time."""
        try:
            async with asyncio.timeout(self._within_s):
                await self._slots.acquire()
        except TimeoutError:
            raise TooBusy(
                f"More sandboxes were asked for than could be started within {self._within_s:g} s. Try again later."
            ) from None
        try:
            yield
        finally:
            self._slots.release()
