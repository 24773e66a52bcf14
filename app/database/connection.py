"""The one way to the database: a transaction, as a context manager."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from app.errors import DatabaseLocked, SandgateError

_MIGRATIONS = Path(__file__).parent / "migrations"
_PRIMARY_CODE = 0xFF
"""The bits of SQLite's extended result codes that tell the kind."""


class DatabaseUnusableError(SandgateError):
    """The database cannot be reached or opened, or its schema cannot be brought to the newest revision."""


class Database:
    def __init__(self, url: str, *, turn_s: float = 10.0, lock_s: float = 5.0) -> None:
        """`turn_s` bounds the wait for other writers of this process, `lock_s` that for other processes; SQLite only.

        Raises: DatabaseUnusableError for a URL that names none; nothing is opened yet.
        """
        try:
            self._url = make_url(url)
            self._engine = create_async_engine(self._url)
        except (ArgumentError, ImportError) as error:
            # The URL itself is not repeated: it may hold a password, and cannot be taken apart.
            raise DatabaseUnusableError(
                "The database URL must look like postgresql+asyncpg://user@host/name."
            ) from error
        self._turn_s = turn_s
        self._writing: asyncio.Lock | None = None
        if self._url.get_backend_name() == "sqlite":
            # Of SQLite's writers each polls for the lock on its own, and under load one is always the unlucky one. So
            # those of this process wait in line, and the driver's time limit is left for other processes.
            self._writing = asyncio.Lock()
            event.listen(self._engine.sync_engine, "connect", partial(_configure_sqlite, lock_s))
            event.listen(self._engine.sync_engine, "begin", _begin)

    @property
    def name(self) -> str:
        """For a person: its URL, without a password."""
        return self._url.render_as_string(hide_password=True)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Commit on a normal end, roll back on an exception. Never await the network, or another one, inside.

        Raises: DatabaseLocked.
        """
        with self._lock_told():
            async with self._turn(), self._engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """For statements that change nothing: SQLite lets any number of these go on beside the one that writes.

        Raises: DatabaseLocked.
        """
        with self._lock_told():
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

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Raises: DatabaseLocked, so that nobody waits for as long as all who wait for a lock before them together."""
        if self._writing is None:
            yield
            return
        try:
            async with asyncio.timeout(self._turn_s):
                await self._writing.acquire()
        except TimeoutError:
            raise self._locked() from None
        try:
            yield
        finally:
            self._writing.release()

    @contextmanager
    def _lock_told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, OperationalError) as error:
            # Of a BEGIN the driver's own error comes through, of all other statements SQLAlchemy's.
            cause = error.orig if isinstance(error, OperationalError) else error
            if getattr(cause, "sqlite_errorcode", 0) & _PRIMARY_CODE != sqlite3.SQLITE_BUSY:
                raise
            raise self._locked() from error

    def _locked(self) -> DatabaseLocked:
        return DatabaseLocked(
            f"The database {Path(self._url.database or '').name} could not be used in time: something else keeps it"
            " locked, such as a backup or a database shell, or its disk is too slow. Try again when that is over."
        )

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


def _configure_sqlite(lock_s: float, dbapi_connection: Any, _record: Any) -> None:
    # The driver must not open transactions by itself: it would not take the write lock at their beginning.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={round(lock_s * 1000)}")
    # In KiB. Each of the connections would keep 2 MiB, of what the system's own cache of files holds as well.
    cursor.execute("PRAGMA cache_size=-256")
    cursor.close()


def _begin(connection: Connection) -> None:
    # A transaction that reads first and writes later could otherwise fail with "database is locked" in the middle.
    reads = connection.get_execution_options().get("sandgate_reads")
    begin = "BEGIN" if reads else "BEGIN IMMEDIATE"
    # Not by a cursor of SQLAlchemy's: opening, executing and closing it is a turn of the driver's thread each.
    connection.connection.dbapi_connection.run_async(lambda driver: driver.execute(begin))  # type: ignore[union-attr]
