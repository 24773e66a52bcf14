"""Keeps pods ready that nobody has asked for yet, so that a create only has to claim one.

Which pods wait is in the database, where a create claims them; this is who makes and removes them. A pool holds as many
as it is set to, more while creates come fast, and no fewer than that again once they have ebbed away.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from app.engines.interface import Engine, Pod
from app.errors import SandgateError
from app.sandboxes.models import PodRecord
from app.sandboxes.planning import SandboxPlan
from app.sandboxes.pod_starter import PodStarter, new_pod
from app.sandboxes.store import Store

_DEMAND_WINDOW_S = 60.0
_MOST_GROWTH = 4
"""How many times its set size a pool may grow to."""
_RETRY_S = 5.0
_LOOK_AGAIN_S = 15.0

_log = structlog.get_logger()


@dataclass(slots=True)
class _Pool:
    plan: SandboxPlan
    size: int
    claims: deque[float] = field(default_factory=deque)
    """When creates wanted a pod of it, within the last minute."""
    waiting: set[str] = field(default_factory=set)
    """Ids of the pods that wait, as far as this process knows."""

    def wanted(self, now: float) -> int:
        while self.claims and self.claims[0] < now - _DEMAND_WINDOW_S:
            self.claims.popleft()
        return min(max(self.size, len(self.claims)), self.size * _MOST_GROWTH)


class WarmPool:
    def __init__(
        self,
        plans: Iterable[tuple[SandboxPlan, int]],
        *,
        store: Store,
        engine: Engine,
        starter: PodStarter,
        now: Callable[[], datetime],
        is_busy: Callable[[], bool],
    ) -> None:
        """`plans` holds what warm pods are made by, and how many of each are to wait.

        While `is_busy`, no pod is made: sandboxes that somebody waits for go first.
        """
        self._pools = {plan.recipe: _Pool(plan, size) for plan, size in plans if size > 0}
        self._store = store
        self._engine = engine
        self._starter = starter
        self._now = now
        self._is_busy = is_busy
        self._making: set[str] = set()
        self._changed = asyncio.Event()

    def asked(self, recipe: str, claimed: PodRecord) -> None:
        """A create wanted a pod of this recipe and got `claimed`, warm or not."""
        if (pool := self._pools.get(recipe)) is None:
            return
        pool.claims.append(asyncio.get_running_loop().time())
        pool.waiting.discard(claimed.id)
        self._changed.set()

    async def sweep(self, recorded: Mapping[str, PodRecord], observed: Mapping[str, Pod]) -> None:
        """Take up the pods that wait, and remove those without a sandbox that nobody can use any more."""
        for pod in recorded.values():
            if pod.sandbox_id is not None or pod.id in self._making:
                continue
            pool = self._pools.get(pod.recipe or "")
            seen = observed.get(pod.id)
            if pool is not None and pod.address is not None and seen is not None and seen.is_running:
                pool.waiting.add(pod.id)
            else:
                if pool is not None:
                    pool.waiting.discard(pod.id)
                await self._remove(pod.id)
        for pool in self._pools.values():
            pool.waiting &= recorded.keys()

    async def keep_filled(self) -> None:
        """Make and remove pods one at a time, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            now = loop.time()
            short = [pool for pool in self._pools.values() if len(pool.waiting) < pool.wanted(now)]
            spare = [pool for pool in self._pools.values() if len(pool.waiting) > pool.wanted(now)]
            try:
                if short and not self._is_busy():
                    # The pool that is emptiest for its size first.
                    await self._make(min(short, key=lambda pool: len(pool.waiting) / pool.size))
                    continue
                if spare:
                    pod_id = spare[0].waiting.pop()
                    await self._remove(pod_id)
                    continue
            except SandgateError as error:
                _log.warning("warm_pod_failed", reason=str(error))
                await asyncio.sleep(_RETRY_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_S / 10 if short else _LOOK_AGAIN_S):
                    await self._changed.wait()

    async def _make(self, pool: _Pool) -> None:
        pod = new_pod(sandbox_id=None, recipe=pool.plan.recipe)
        self._making.add(pod.id)
        try:
            await self._store.insert_warm(pod, self._now())
            started = await self._starter.start_pod(pod, pool.plan)
            await self._starter.until_listening(started, pool.plan)
            assert started.address is not None
            await self._store.mark_warm(pod.id, address=started.address, now=self._now())
            pool.waiting.add(pod.id)
            _log.info("pod_waits", pod_id=pod.id)
        except SandgateError:
            await self._remove(pod.id)
            raise
        finally:
            self._making.discard(pod.id)

    async def _remove(self, pod_id: str) -> None:
        """Remove a pod that waits, unless it was claimed meanwhile."""
        if await self._store.withdraw(pod_id):
            await self._engine.stop(pod_id)
            await self._store.forget_pod(pod_id)
