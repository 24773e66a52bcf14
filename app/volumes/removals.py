"""Deleted volumes that the engine may still hold, because it could not be asked or does not let go of them yet.

Only what was deleted here is removed: a volume that no row names may be all that is left after a database was restored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from sqlalchemy import delete, insert, select

from app.database import Database
from app.database.tables import removed_volumes, volumes
from app.engines.interface import Engine
from app.errors import EngineError

_LATE = timedelta(hours=1)
"""An engine may carry out after a while what nobody waits for any more."""

_log = structlog.get_logger()


class Removals:
    def __init__(
        self, *, database: Database, engine: Engine, now: Callable[[], datetime], sweep_s: float = 600.0
    ) -> None:
        """What the engine still holds is tried again every `sweep_s`."""
        self._database = database
        self._engine = engine
        self._now = now
        self._sweep_s = sweep_s

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                await self._sweep()
            except EngineError as error:
                _log.warning("volumes_not_removed", reason=str(error))
            except Exception:  # noqa: BLE001 - a database that is away for a while must not end the sweep
                _log.exception("volumes_not_removed")
            await asyncio.sleep(self._sweep_s)

    async def forget(self, volume_id: str) -> None:
        """Nobody has the volume any more, and the engine is to have it no longer. Safe to repeat."""
        async with self._database.transaction() as connection:
            forgotten = await connection.execute(delete(volumes).where(volumes.c.id == volume_id))
            if forgotten.rowcount == 1:
                await connection.execute(insert(removed_volumes).values(id=volume_id, removed_at=self._now()))

    async def _sweep(self) -> None:
        async with self._database.reading() as connection:
            rows = await connection.execute(select(removed_volumes.c.id, removed_volumes.c.removed_at))
            removed = {row.id: row.removed_at for row in rows}
        if not removed:
            return
        there = await self._engine.volumes()
        for volume_id in removed.keys() & there:
            try:
                await self._engine.remove_volume(volume_id)
            except EngineError as error:  # the others can be removed all the same
                _log.warning("volume_not_removed", volume_id=volume_id, reason=str(error))
        settled = [volume_id for volume_id in removed.keys() - there if removed[volume_id] < self._now() - _LATE]
        async with self._database.transaction() as connection:
            await connection.execute(delete(removed_volumes).where(removed_volumes.c.id.in_(settled)))
