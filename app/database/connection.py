"""The one way to the database: a transaction, as a context manager."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from app.errors import SandgateError

_MIGRATIONS = Path(__file__).parent / "migrations"


class DatabaseUnusableError(SandgateError):
    """The database cannot be reached or opened, or its schema cannot be brought to the newest revision."""


class Database:
    def __init__(self, url: str) -> None:
        """Raises: DatabaseUnusableError for a URL that names none; nothing is opened yet."""
        try:
            self._url = make_url(url)
            self._engine = create_async_engine(self._url)
        except (ArgumentError, ImportError) as error:
            # The URL itself is not repeated: it may hold a password, and cannot be taken apart.
            raise DatabaseUnusableError(
                "The database URL must look like postgresql+asyncpg://user@host/name."
            ) from error
        self._writing: AbstractAsyncContextManager[Any] = nullcontext()
        if self._url.get_backend_name() == "sqlite":
            # Of SQLite's writers each polls for the lock on its own, and under load one is always the unlucky one. So
            # those of this process wait in line, and the driver's time limit is left for other processes.
            self._writing = asyncio.Lock()
            event.listen(self._engine.sync_engine, "connect", _configure_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin)

    @property
    def name(self) -> str:
        """For a person: its URL, without a password."""
        return self._url.render_as_string(hide_password=True)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Commit on a normal end, roll back on an exception. Never await the network, or another one, inside."""
        async with self._writing, self._engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """For statements that change nothing: SQLite lets any number of these go on beside the one that writes."""
        async with self._engine.connect() as connection:
            await connection.execution_options(sandgate_reads=True)
            async with connection.begin():
                yield connection

    async def migrate(self) -> None:
        """Bring the schema to the newest revision. Safe to repeat. Raises: DatabaseUnusableError."""
        with self._errors_mapped():
            if self._url.get_backend_name() == "sqlite" and self._url.database:
                # A failed connect of the asynchronous driver leaves a thread that outlives the loop and says so.
                sqlite3.connect(self._url.database).close()
            async with self._engine.begin() as connection:
                await connection.run_sync(_upgrade)

    async def aclose(self) -> None:
        await self._engine.dispose()

    @contextmanager
    def _errors_mapped(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:
            # SQLAlchemy's own text goes on with the statement and a link.
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise DatabaseUnusableError(f"The database {self.name} cannot be used: {reason}.") from error


def _upgrade(connection: Connection) -> None:
    if _revision(connection) == max(file.stem.partition("_")[0] for file in _MIGRATIONS.glob("versions/*.py")):
        return
    from app.database.upgrade import upgrade  # noqa: PLC0415 - Alembic costs a start 0.1 s and 8 MB, mostly for nothing

    upgrade(connection, _MIGRATIONS)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _configure_sqlite(dbapi_connection: Any, _record: Any) -> None:
    # The driver must not open transactions by itself: it would not take the write lock at their beginning.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=5000")
    # In KiB. Each of the connections would keep 2 MiB, of what the system's own cache of files holds as well.
    cursor.execute("PRAGMA cache_size=-256")
    cursor.close()


def _begin(connection: Connection) -> None:
    # A transaction that reads first and writes later could otherwise fail with "database is locked" in the middle.
    reads = connection.get_execution_options().get("sandgate_reads")
    begin = "BEGIN" if reads else "BEGIN IMMEDIATE"
    # Not by a cursor of SQLAlchemy's: opening, executing and closing it is a turn of the driver's thread each.
    connection.connection.dbapi_connection.run_async(lambda driver: driver.execute(begin))  # type: ignore[union-attr]
