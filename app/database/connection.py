"""The one way to the database: a transaction, as a context manager."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    def __init__(self, url: str) -> None:
        self._engine = create_async_engine(url)
        if make_url(url).get_backend_name() == "sqlite":
            event.listen(self._engine.sync_engine, "connect", _configure_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_immediately)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Commit on a normal end, roll back on an exception. Never await the network inside."""
        async with self._engine.begin() as connection:
            yield connection

    async def migrate(self) -> None:
        """Bring the schema to the newest revision. Safe to repeat."""
        async with self._engine.begin() as connection:
            await connection.run_sync(_upgrade)

    async def aclose(self) -> None:
        await self._engine.dispose()


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    newest = ScriptDirectory.from_config(config).get_current_head()
    if MigrationContext.configure(connection).get_current_revision() == newest:
        return
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _configure_sqlite(dbapi_connection: Any, _record: Any) -> None:
    # The driver must not open transactions by itself: it would not take the write lock at their beginning.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()


def _begin_immediately(connection: Connection) -> None:
    # A transaction that reads first and writes later could otherwise fail with "database is locked" in the middle.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
