"""The real engine behind a door that now and then cuts a connection, or makes a new one wait, as a generator picks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.engine_door import Door


class UnreliableDoor(Door):
    def __init__(self, path: Path, *, seed: int) -> None:
        super().__init__(path)
        self.cuts = 0
        self._chance = random.Random(seed)
        self._is_troubled = False

    @asynccontextmanager
    async def trouble(self) -> AsyncIterator[None]:
        """Until left, several connections a second are cut, whatever is going on in them."""
        self._is_troubled = True
        cutting = asyncio.create_task(self._cut_now_and_then())
        try:
            yield
        finally:
            self._is_troubled = False
            cutting.cancel()
            await asyncio.wait([cutting])

    async def _cut_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._chance.uniform(0.05, 0.4))
            if self._passing:
                self._chance.choice(list(self._passing)).cancel()
                self.cuts += 1

    async def _admit(self) -> None:
        if self._is_troubled and self._chance.random() < 0.2:
            await asyncio.sleep(self._chance.uniform(0.1, 2.0))
