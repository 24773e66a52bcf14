"""Keeps pods ready that nobody has asked for yet, so that a create only has to claim one.

Which pods wait is in the database, where a create claims them; this is who makes, checks and removes them. A pool holds
as many as it is set to, more while creates come fast, and no fewer than that again once they have ebbed away.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
_LONGEST_RETRY_S = 60.0
_BUSY_S = 0.5
_SETTLE_S = 1.0
"""How long a claimed sandbox is left alone: its MCP servers start behind the answer to its create."""
_LOOK_AGAIN_S = 15.0
_CHECKS_AT_ONCE = 8

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """What the pods of one pool are made by."""

    template: str
    """As the operator named it."""
    plan: SandboxPlan
    size: int


WarmPlans = Callable[[], Awaitable[Sequence[PoolPlan]]]
"""Asked again and again, because a template may be built anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """How one pool is doing. The counts are of this process."""

    templates: tuple[str, ...]
    size: int
    wanted: int
    """How many are to wait now: more than `size` while creates come fast."""
    waiting: int
    warm_creates: int
    cold_creates: int
    """Creates that came while none waited."""
    replaced: int
    """Pods that died or did not answer any more while they waited."""


@dataclass(slots=True)
class _Pool:
    plan: SandboxPlan
    templates: tuple[str, ...] = ()
    size: int = 0
    claims: deque[float] = field(default_factory=deque)
    """When creates wanted a pod of it, within the last minute."""
    waiting: set[str] = field(default_factory=set)
    """Ids of the pods that wait, as far as this process knows."""
    failures: int = 0
    """Starts that failed since the last that did not."""
    retry_at: float = 0.0
    warm_creates: int = 0
    cold_creates: int = 0
    replaced: int = 0

    def wanted(self, now: float) -> int:
        while self.claims and self.claims[0] < now - _DEMAND_WINDOW_S:
            self.claims.popleft()
        return min(max(self.size, len(self.claims)), self.size * _MOST_GROWTH)


class WarmPool:
    def __init__(
        self,
        plans: WarmPlans,
        *,
        store: Store,
        engine: Engine,
        starter: PodStarter,
        now: Callable[[], datetime],
        is_busy: Callable[[], bool],
    ) -> None:
        """While `is_busy`, no pod is made: sandboxes that somebody waits for go first."""
        self._plans = plans
        self._pools: dict[str, _Pool] = {}
        """By recipe."""
        self._store = store
        self._engine = engine
        self._starter = starter
        self._now = now
        self._is_busy = is_busy
        self._making: set[str] = set()
        self._claimed: set[str] = set()
        """Ids of pods that were claimed, as long as rows read earlier may tell otherwise."""
        self._changed = asyncio.Event()
        self._calm_at = 0.0
        """When the servers of the sandbox that was claimed last have had the machine for a while."""

    def asked(self, recipe: str, claimed: PodRecord) -> None:
        """A create wanted a pod of this recipe and got `claimed`, warm or not."""
        if claimed.address is not None:
            self._claimed.add(claimed.id)
        if (pool := self._pools.get(recipe)) is None:
            return
        pool.claims.append(asyncio.get_running_loop().time())
        if claimed.address is not None:
            pool.warm_creates += 1
            self._calm_at = asyncio.get_running_loop().time() + _SETTLE_S
        else:
            pool.cold_creates += 1
            _log.info("pool_exhausted", templates=pool.templates, size=pool.size)
        pool.waiting.discard(claimed.id)
        self._changed.set()

    def status(self) -> list[PoolStatus]:
        now = asyncio.get_running_loop().time()
        return [
            PoolStatus(
                templates=pool.templates,
                size=pool.size,
                wanted=pool.wanted(now),
                waiting=len(pool.waiting),
                warm_creates=pool.warm_creates,
                cold_creates=pool.cold_creates,
                replaced=pool.replaced,
            )
            for pool in self._pools.values()
        ]

    # -- looking after what waits -----------------------------------------------------------------------------------

    async def sweep(self, recorded: Mapping[str, PodRecord], observed: Mapping[str, Pod]) -> None:
        """Follow the templates, take up the pods that wait, and remove those without a sandbox that nobody can use.

        Pods may be made and claimed meanwhile, and since `recorded` was read.
        """
        await self._plan_anew()
        useless: list[str] = []
        for pod in recorded.values():
            pool = self._pools.get(pod.recipe or "")
            if pod.sandbox_id is not None and pool is not None:
                pool.waiting.discard(pod.id)  # whose create ended before it could say so
            is_claimed = pod.id in self._claimed and pod.recipe is not None  # one that was replaced has no recipe
            if pod.sandbox_id is not None or pod.id in self._making or is_claimed:
                continue
            seen = observed.get(pod.id)
            if pool is not None and pod.address is not None and seen is not None and seen.is_running:
                pool.waiting.add(pod.id)
            elif pool is None or pod.address is not None or pod.id not in pool.waiting:
                useless.append(pod.id)  # all others have become ready since `recorded` was read
        self._claimed &= {pod.id for pod in recorded.values() if pod.sandbox_id is None}
        if not self._is_busy():
            useless += await self._silent(recorded)
        for pod_id in useless:
            for pool in self._pools.values():
                if pod_id in pool.waiting:
                    pool.waiting.discard(pod_id)
                    pool.replaced += 1
            await self._give_up(pod_id)
        self._changed.set()

    async def _plan_anew(self) -> None:
        pools: dict[str, _Pool] = {}
        for wanted in await self._plans():
            if wanted.size == 0:
                continue
            recipe = wanted.plan.recipe
            if recipe not in pools:
                pool = pools[recipe] = self._pools.get(recipe) or _Pool(wanted.plan)
                pool.templates, pool.size = (), 0
            pools[recipe].templates += (wanted.template,)
            pools[recipe].size += wanted.size
        self._pools = pools

    async def _silent(self, recorded: Mapping[str, PodRecord]) -> list[str]:
        """Ids of waiting pods whose agent or gateway does not answer."""
        slots = asyncio.Semaphore(_CHECKS_AT_ONCE)
        silent: list[str] = []

        async def check(pod: PodRecord, plan: SandboxPlan) -> None:
            async with slots:
                if not await self._starter.is_listening(pod, plan):
                    _log.warning("warm_pod_silent", pod_id=pod.id)
                    silent.append(pod.id)

        async with asyncio.TaskGroup() as checks:
            for pool in self._pools.values():
                for pod_id in pool.waiting & recorded.keys():
                    if recorded[pod_id].address is not None:
                        checks.create_task(check(recorded[pod_id], pool.plan))
        return silent

    # -- making and removing ----------------------------------------------------------------------------------------

    async def keep_filled(self) -> None:
        """Make and remove pods one at a time, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            now = loop.time()
            short = [p for p in self._pools.values() if len(p.waiting) < p.wanted(now) and p.retry_at <= now]
            spare = [p for p in self._pools.values() if len(p.waiting) > p.wanted(now)]
            is_calm = now >= self._calm_at or not all(pool.waiting for pool in short)
            if short and is_calm and not self._is_busy():
                # The pool that is emptiest for its size first.
                pool = min(short, key=lambda pool: len(pool.waiting) / pool.size)
                await self._make(pool)
                if all(pool.waiting for pool in short):
                    # Nobody would have to wait yet, so what runs gets as much of the machine as this took.
                    await asyncio.sleep(min(loop.time() - now, _RETRY_S))
                continue
            if spare:
                await self._give_up(spare[0].waiting.pop())
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(_BUSY_S if short else _LOOK_AGAIN_S):
                    await self._changed.wait()

    async def _make(self, pool: _Pool) -> None:
        """Add a pod to those that wait. After a failure the pool is left alone for a while, others are not."""
        pod = new_pod(sandbox_id=None, recipe=pool.plan.recipe)
        self._making.add(pod.id)
        try:
            await self._store.insert_warm(pod, self._now())
            started = await self._starter.start_pod(pod, pool.plan)
            await self._starter.until_listening(started, pool.plan)
            assert started.address is not None
            await self._store.mark_warm(pod.id, address=started.address, now=self._now())
        except Exception as error:  # noqa: BLE001 - whatever it is must not end the making of all pods to come
            pool.failures += 1
            delay_s = min(_RETRY_S * 2 ** (pool.failures - 1), _LONGEST_RETRY_S)
            pool.retry_at = asyncio.get_running_loop().time() + delay_s
            log = _log.warning if isinstance(error, SandgateError) else _log.exception
            log("warm_pod_failed", templates=pool.templates, reason=str(error), retry_in_s=delay_s)
            await self._give_up(pod.id)
        else:
            pool.failures = 0
            pool.waiting.add(pod.id)
            _log.info("pod_waits", pod_id=pod.id, templates=pool.templates)
        finally:
            self._making.discard(pod.id)

    async def _give_up(self, pod_id: str) -> None:
        """Remove a pod that waits, unless it was claimed meanwhile. What stays of it is the next sweep's."""
        try:
            if await self._store.withdraw(pod_id):
                await self._engine.stop(pod_id)
                await self._store.forget_pod(pod_id)
        except Exception as error:  # noqa: BLE001 - as above
            _log.warning("warm_pod_not_removed", pod_id=pod_id, reason=str(error))
