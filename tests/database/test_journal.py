"""What became of sandboxes: written soon, read in order, bounded in number and in age."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta

from sqlalchemy import func, select

from app.database import Database
from app.database.tables import sandbox_events
from app.sandboxes.journal import MOST_ENTRIES, Journal, Level
from tests.in_process import Clock
from tests.waiting import BOUND_S


async def test_what_is_recorded_is_read_in_order_at_once(database: Database) -> None:
    journal = Journal(database, now=Clock())
    journal.record("i1", "Created", template="base")
    journal.record("i2", "Created")
    journal.record("i1", "Failed", level=Level.ERROR)
    first, second = await journal.entries("i1")
    assert (first.message, first.level, first.fields) == (
        "Created",
        Level.INFO,
        {"logger": "sandgate", "template": "base"},
    )
    assert (second.message, second.level) == ("Failed", Level.ERROR)
    assert first.at < second.at
    assert [entry.message for entry in await Journal(database, now=Clock()).entries("i2")] == ["Created"]


async def test_what_nobody_reads_is_written_all_the_same(database: Database) -> None:
    journal = Journal(database, now=Clock())
    running = asyncio.create_task(journal.run())
    await asyncio.sleep(0)
    journal.record("i1", "Created")
    async with asyncio.timeout(BOUND_S):
        while not await rows(database):
            await asyncio.sleep(0.05)
    journal.record("i1", "Stopped")
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert await rows(database) == 2


async def test_the_newest_of_a_sandbox_are_kept(database: Database) -> None:
    journal = Journal(database, now=Clock())
    for number in range(MOST_ENTRIES + 5):
        journal.record("i1", str(number))
    journal.record("i2", "other")
    entries = await journal.entries("i1")
    assert (entries[0].message, len(entries)) == ("5", MOST_ENTRIES)
    assert await rows(database) == MOST_ENTRIES + 1


async def test_what_is_a_week_old_goes(database: Database) -> None:
    clock = Clock()
    journal = Journal(database, now=clock)
    journal.record("i1", "Created")
    await journal.entries("i1")
    clock.moment += timedelta(days=8)
    journal.record("i1", "Stopped")
    running = asyncio.create_task(journal.run())
    async with asyncio.timeout(BOUND_S):
        while [entry.message for entry in await journal.entries("i1")] != ["Stopped"]:
            await asyncio.sleep(0.05)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def rows(database: Database) -> int:
    async with database.transaction() as connection:
        return int((await connection.execute(select(func.count()).select_from(sandbox_events))).scalar_one())
