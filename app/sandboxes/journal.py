"""What became of sandboxes, told to their owners: created, started, paused, failed and why.

Recorded without waiting and written a moment later, so that no create waits for its own log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import cast

import structlog
from sqlalchemy import delete, insert, select

from app.database import Database
from app.database.tables import sandbox_events, sandboxes

MOST_ENTRIES = 1000
"""Kept of one sandbox."""
_KEEP = timedelta(days=7)
_MOST_PENDING = 10_000
_WRITE_INTERVAL_S = 0.5
_PRUNE_INTERVAL_S = 3600.0
_LONGEST_MESSAGE = 8192

_log = structlog.get_logger()


class Level(IntEnum):
    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40

    @property
    def wire_name(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    at: datetime
    level: Level
    message: str
    fields: Mapping[str, str]
    """`logger` names the part that speaks."""


class Journal:
    def __init__(self, database: Database, *, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        self._pending: deque[tuple[str, LogEntry]] = deque(maxlen=_MOST_PENDING)
        self._writing = asyncio.Lock()
        self._wake = asyncio.Event()

    def record(self, sandbox_id: str, message: str, *, level: Level = Level.INFO, **fields: str) -> None:
        """Never a secret: owners read it, and it lies in the database in clear."""
        entry = LogEntry(
            at=self._now(), level=level, message=message[:_LONGEST_MESSAGE], fields={"logger": "sandgate", **fields}
        )
        self._pending.append((sandbox_id, entry))
        self._wake.set()

    async def run(self) -> None:
        """Write what is recorded and drop what is old, until cancelled; what is left is written then."""
        loop = asyncio.get_running_loop()
        prune_at = loop.time()
        try:
            while True:
                self._wake.clear()
                try:
                    await self._write()
                    if loop.time() >= prune_at:
                        await self._prune()
                        prune_at = loop.time() + _PRUNE_INTERVAL_S
                except Exception:  # noqa: BLE001 - a database that is away for a while must not end the journal
                    _log.exception("journal_not_written")
                try:
                    async with asyncio.timeout(_PRUNE_INTERVAL_S):
                        await self._wake.wait()
                except TimeoutError:
                    continue
                await asyncio.sleep(_WRITE_INTERVAL_S)  # more often comes together than alone
        finally:
            await self._write()

    async def entries(self, sandbox_id: str) -> Sequence[LogEntry]:
        """Oldest first, at most 1,000: the newest."""
        await self._write()
        query = (
            select(sandbox_events)
            .where(sandbox_events.c.sandbox_id == sandbox_id)
            .order_by(sandbox_events.c.at.desc(), sandbox_events.c.id.desc())
            .limit(MOST_ENTRIES)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [
            LogEntry(
                at=row["at"],
                level=Level[row["level"].upper()],
                message=row["message"],
                fields=cast(Mapping[str, str], row["fields"]),
            )
            for row in reversed(rows)
        ]

    async def is_of(self, team_id: str, sandbox_id: str) -> bool:
        """Whether the team has, or in the last days had, this sandbox."""
        query = select(sandboxes.c.id).where(sandboxes.c.id == sandbox_id, sandboxes.c.team_id == team_id)
        async with self._database.reading() as connection:
            return (await connection.execute(query)).first() is not None

    async def _write(self) -> None:
        async with self._writing:
            batch = [self._pending.popleft() for _ in range(len(self._pending))]
            if not batch:
                return
            try:
                async with self._database.transaction() as connection:
                    await connection.execute(
                        insert(sandbox_events),
                        [
                            {
                                "sandbox_id": sandbox_id,
                                "at": entry.at,
                                "level": entry.level.wire_name,
                                "message": entry.message,
                                "fields": dict(entry.fields),
                            }
                            for sandbox_id, entry in batch
                        ],
                    )
                    for sandbox_id in {sandbox_id for sandbox_id, _ in batch}:
                        newest = (
                            select(sandbox_events.c.id)
                            .where(sandbox_events.c.sandbox_id == sandbox_id)
                            .order_by(sandbox_events.c.id.desc())
                            .offset(MOST_ENTRIES)
                            .limit(1)
                        )
                        await connection.execute(
                            delete(sandbox_events).where(
                                sandbox_events.c.sandbox_id == sandbox_id,
                                sandbox_events.c.id <= newest.scalar_subquery(),
                            )
                        )
            except BaseException:
                self._pending.extendleft(reversed(batch))
                raise

    async def _prune(self) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(delete(sandbox_events).where(sandbox_events.c.at < self._now() - _KEEP))
