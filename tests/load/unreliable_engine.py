"""An engine that fails, hangs and goes away at moments that a seeded generator picks."""

from __future__ import annotations

import asyncio
import random

from app.engines.in_memory_engine import InMemoryEngine
from app.errors import EngineError, EngineUnavailable
from tests.in_process import IMAGES


class UnreliableEngine(InMemoryEngine):
    """Keeps the contract: what hangs ends in EngineUnavailable, once `calm` is called at the latest."""

    def __init__(self, chance: random.Random, *, trouble: float = 0.0) -> None:
        """`trouble` is the share of steps that go wrong; a verb takes one or more."""
        super().__init__(IMAGES, address_of=lambda spec: f"{spec.pod_id}.pod")
        self.saved: set[str] = set()
        """Names of all images that snapshots were kept as."""
        self._chance = chance
        self._trouble = trouble
        self._is_calm = asyncio.Event()

    def calm(self) -> None:
        """From now on nothing goes wrong."""
        self._trouble = 0.0
        self.is_away = False
        self._is_calm.set()

    async def snapshot(self, pod_id: str, role: str, image: str) -> None:
        self.saved.add(image)
        await super().snapshot(pod_id, role, image)

    async def _answer(self, doing: str) -> None:
        await super()._answer(doing)
        if self._chance.random() >= self._trouble:
            return
        match self._chance.choice(("refuse", "refuse", "hang", "away", "slow")):
            case "refuse":
                raise EngineError(f"Could not {doing}: device busy")
            case "hang":
                try:
                    async with asyncio.timeout(self._chance.uniform(0.05, 0.5)):
                        await self._is_calm.wait()
                except TimeoutError:
                    pass
                raise EngineUnavailable(f"Could not {doing}: the engine took too long.")
            case "away":
                self.is_away = True
                asyncio.get_running_loop().call_later(self._chance.uniform(0, 0.1), self._come_back)
            case "slow":
                await asyncio.sleep(self._chance.uniform(0, 0.05))

    def _come_back(self) -> None:
        self.is_away = False
