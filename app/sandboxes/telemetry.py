"""What sandboxes use of what they have, over time: samples of each agent's `/metrics`, in memory.

Watching must cost an idle sandbox next to nothing. So one whose metrics somebody has asked for lately is sampled as
often as E2B does it, every 5 s, and one that nobody asks about once a minute, which keeps a coarse history of it.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog

from app.sandboxes.directory import Directory
from app.sandboxes.failures import find_live, sandbox_not_found
from app.sandboxes.models import LiveSandbox
from app.sandboxes.pod_clients import AgentClient, PodUnreachableError

ASKED_INTERVAL_S = 5.0
UNASKED_INTERVAL_S = 60.0
_ASKED_FOR_S = 120.0
"""How long a sandbox counts as watched after somebody asked."""
_MOST_SAMPLES = 360
"""Of one sandbox: half an hour at the short interval, six hours at the long one."""
_MOST_COUNT = 2**63 - 1
_AT_ONCE = 8
_TICK_S = 1.0
_TIMEOUT_S = 3.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    at: datetime
    cpu_count: int
    cpu_used_pct: float
    """Of all CPUs of the sandbox, as a mean since the sample before."""
    memory_used: int
    """Bytes, as all sizes here."""
    memory_total: int
    memory_cache: int
    disk_used: int
    disk_total: int


@dataclass(slots=True)
class _History:
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=_MOST_SAMPLES))
    asked_until: float = 0.0
    due_at: float = 0.0
    """Both on the event loop's clock."""
    sampling: asyncio.Lock = field(default_factory=asyncio.Lock)


class Metrics:
    """`run` it; then ask. The samples of a sandbox are kept while it is paused and go with it."""

    def __init__(self, directory: Directory, agents: AgentClient, *, now: Callable[[], datetime]) -> None:
        self._directory = directory
        self._agents = agents
        self._now = now
        self._histories: dict[str, _History] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        directory.on_cut_off(self._forget_removed)

    async def run(self) -> None:
        """Sample what is due, until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                for live in self._directory:
                    history = self._history_of(live.sandbox_id)
                    if live.address is not None and history.due_at <= loop.time():
                        tasks.create_task(self._sample(live, history), name=f"metrics {live.sandbox_id}")
                await asyncio.sleep(_TICK_S)

    async def of(
        self, team_id: str, sandbox_id: str, *, start: datetime | None, end: datetime | None
    ) -> Sequence[Sample]:
        """Samples from `start` to `end`, oldest first; of a running sandbox there is one that is at most 5 s old.

        Raises: NotFound, also for another team's sandbox; EngineAway.
        """
        live = find_live(sandbox_id, self._directory)
        if live.sandbox.team_id != team_id:
            raise sandbox_not_found(sandbox_id)
        return [
            sample
            for sample in (await self._look(live)).samples
            if (start is None or start <= sample.at) and (end is None or sample.at <= end)
        ]

    async def latest(self, team_id: str, sandbox_ids: Iterable[str]) -> dict[str, Sample]:
        """The newest sample of each; what is not there, not the team's, or has none, is left out."""
        async with asyncio.TaskGroup() as tasks:
            looks = {
                sandbox_id: tasks.create_task(self._look(live))
                for sandbox_id in sandbox_ids
                if (live := self._find(team_id, sandbox_id)) is not None
            }
        return {sandbox_id: look.result().samples[-1] for sandbox_id, look in looks.items() if look.result().samples}

    def _find(self, team_id: str, sandbox_id: str) -> LiveSandbox | None:
        live = self._directory.find(sandbox_id)
        return live if live is not None and live.sandbox.team_id == team_id else None

    async def _look(self, live: LiveSandbox) -> _History:
        """Somebody asks: from now on sample often, and at once if what is there is old."""
        now = asyncio.get_running_loop().time()
        history = self._history_of(live.sandbox_id)
        was_watched = history.asked_until > now
        history.asked_until = now + _ASKED_FOR_S
        if live.address is not None and (not was_watched or history.due_at <= now):
            history.due_at = 0.0
            await self._sample(live, history)
        return history

    async def _sample(self, live: LiveSandbox, history: _History) -> None:
        """One sample, unless one was made meanwhile. What cannot be asked has a gap in its history."""
        loop = asyncio.get_running_loop()
        async with history.sampling:
            if history.due_at > loop.time():
                return
            history.due_at = loop.time() + (
                ASKED_INTERVAL_S if history.asked_until > loop.time() else UNASKED_INTERVAL_S
            )
            try:
                async with self._slots, asyncio.timeout(_TIMEOUT_S):
                    assert live.address is not None
                    usage = await self._agents.usage(live.address, live.access_token)
                history.samples.append(_sample(usage, self._now()))
            except (PodUnreachableError, TimeoutError, ValueError, KeyError, TypeError, OverflowError) as error:
                _log.info("metrics_missing", sandbox_id=live.sandbox_id, reason=str(error) or type(error).__name__)
            except Exception:  # noqa: BLE001 - one sandbox's trouble must not end the samples of all others
                _log.exception("metrics_missing", sandbox_id=live.sandbox_id)

    def _history_of(self, sandbox_id: str) -> _History:
        history = self._histories.get(sandbox_id)
        if history is None:
            # The first one at once: it is what a fresh sandbox is asked about.
            history = self._histories[sandbox_id] = _History()
        return history

    def _forget_removed(self, sandbox_id: str) -> None:
        if self._directory.find(sandbox_id) is None:
            self._histories.pop(sandbox_id, None)


def _sample(usage: Any, at: datetime) -> Sample:
    """Raises: ValueError, KeyError, TypeError, OverflowError for what is none."""
    cpu_used_pct = float(usage["cpu_used_pct"])
    if not 0 <= cpu_used_pct < math.inf:
        raise ValueError("cpu_used_pct is no share of a processor")
    return Sample(
        at=at,
        cpu_count=_count(usage["cpu_count"]),
        cpu_used_pct=cpu_used_pct,
        memory_used=_count(usage["mem_used"]),
        memory_total=_count(usage["mem_total"]),
        memory_cache=_count(usage["mem_cache"]),
        disk_used=_count(usage["disk_used"]),
        disk_total=_count(usage["disk_total"]),
    )


def _count(value: Any) -> int:
    count = int(value)
    if not 0 <= count <= _MOST_COUNT:
        raise ValueError("a size is negative, or larger than there is")
    return count
