"""Ends or pauses sandboxes when their time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import structlog

from app.errors import Conflict, Problem
from app.sandboxes.background import Background
from app.sandboxes.directory import Directory
from app.sandboxes.journal import Journal
from app.sandboxes.models import LiveSandbox, PauseMode
from app.sandboxes.store import Store
from app.sandboxes.transitions import Transitions

_LONGEST_SLEEP_S = 30.0
_PAUSE_RETRY_S = 5.0
_AFTER_A_FAILURE_S = 1.0

_log = structlog.get_logger()


class Expiry:
    def __init__(
        self,
        *,
        store: Store,
        transitions: Transitions,
        directory: Directory,
        journal: Journal,
        background: Background,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._transitions = transitions
        self._journal = journal
        self._background = background
        self._now = now
        self._moved = asyncio.Event()
        self.wakes_up_at: datetime | None = None
        """By itself; None if it knows of nothing to wake up for."""
        self._pausing: set[str] = set()
        directory.on_change(self._heed)

    def moved(self) -> None:
        """A sandbox may end earlier than was known."""
        self._moved.set()

    def _heed(self, _: str, live: LiveSandbox | None) -> None:
        if (
            live is not None
            and live.address is not None
            and (self.wakes_up_at is None or live.sandbox.ends_at < self.wakes_up_at)
        ):
            self.moved()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                await self._settle_due()
                await self._sleep()
            except Exception:  # noqa: BLE001 - a database that is away for a while must not end this
                _log.exception("expiry_failed")
                await asyncio.sleep(_AFTER_A_FAILURE_S)

    async def _settle_due(self) -> None:
        self._moved.clear()
        self.wakes_up_at = None  # whatever is put while the database is asked wakes this up again
        now = self._now()
        for sandbox_id in await self._store.expired(now):
            # From its row, because it may not have been adopted yet.
            sandbox = await self._store.find(sandbox_id)
            if sandbox is None:
                continue
            if sandbox.lifecycle.on_timeout == "kill":
                if await self._store.ask_to_stop_if_over(sandbox_id, now):
                    self._journal.record(sandbox_id, "Its time is over.")
                    _log.info("sandbox_expired", sandbox_id=sandbox_id)
                    self._transitions.stop_soon(sandbox_id)
            elif sandbox_id not in self._pausing:
                self._pausing.add(sandbox_id)
                pause = self._pause_one(sandbox_id, sandbox.lifecycle.pause_mode, now)
                self._background.spawn(pause, f"pause {sandbox_id}")
        self.wakes_up_at = await self._store.next_expiry()

    async def _sleep(self) -> None:
        """Until the next sandbox's time is over."""
        sleep_s = _LONGEST_SLEEP_S if self.wakes_up_at is None else (self.wakes_up_at - self._now()).total_seconds()
        if self._pausing:
            sleep_s = max(sleep_s, _PAUSE_RETRY_S)  # they are due already; the end of a pause wakes this up
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(sleep_s, 0.0), _LONGEST_SLEEP_S)):
                await self._moved.wait()

    async def _pause_one(self, sandbox_id: str, mode: PauseMode, now: datetime) -> None:
        try:
            await self._transitions.pause(sandbox_id, mode, if_over_at=now)
        except Conflict:
            pass  # it was stopped, paused, or given more time meanwhile
        except Problem as problem:
            _log.warning("automatic_pause_failed", sandbox_id=sandbox_id, reason=problem.message)
            await asyncio.sleep(_PAUSE_RETRY_S)
        finally:
            self._pausing.discard(sandbox_id)
            self.moved()
