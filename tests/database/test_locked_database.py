"""Something else keeps SQLite's file to itself: everybody is told so in a bounded time, however many wait."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from app.database import Database
from app.errors import DatabaseLocked

TURN_S = 0.05
LOCK_S = 5.0
WRITERS = 12


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}", turn_s=TURN_S, lock_s=LOCK_S)
    try:
        await write(database, "CREATE TABLE notes (text)")
        yield database
    finally:
        await database.aclose()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    yield connection
    connection.close()


async def write(database: Database, statement: str = "INSERT INTO notes VALUES ('')") -> None:
    async with database.transaction() as connection:
        await connection.execute(text(statement))


async def test_no_writer_waits_for_all_that_wait_before_it(impatient: Database, shell: sqlite3.Connection) -> None:
    shell.execute("BEGIN IMMEDIATE")
    failed: list[int] = []

    async def write_in_vain(number: int) -> None:
        with pytest.raises(DatabaseLocked, match=r"The database test\.db .* a backup or a database shell"):
            await write(impatient)
        failed.append(number)

    async with asyncio.TaskGroup() as writers:
        for number in range(WRITERS):
            writers.create_task(write_in_vain(number))
    assert failed[-1] == 0  # the only one that got to wait for the lock itself
    assert len(failed) == WRITERS
    shell.execute("ROLLBACK")
    await write(impatient)


async def test_who_only_reads_is_told_too(impatient: Database, shell: sqlite3.Connection) -> None:
    await impatient.aclose()  # in this mode the file is for one connection only
    shell.execute("PRAGMA locking_mode=EXCLUSIVE")
    shell.execute("PRAGMA journal_mode=DELETE")
    shell.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DatabaseLocked):
        async with impatient.reading() as connection:
            await connection.execute(text("SELECT text FROM notes"))


async def test_other_troubles_keep_their_names(impatient: Database) -> None:
    with pytest.raises(Exception, match="no such table: absent") as trouble:
        await write(impatient, "DELETE FROM absent")
    assert not isinstance(trouble.value, DatabaseLocked)
