"""What the commands of `sandgate` share: where they print, and how they get at the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from rich.console import Console

from app.accounts import Accounts
from app.database import Database
from app.home import make_home
from app.main import database_url, ensure_first_key
from app.settings import Settings, read_settings

T = TypeVar("T")

console = Console(stderr=True, highlight=False)
"""Progress and errors."""
out = Console(highlight=False)
"""What was asked for."""


@asynccontextmanager
async def opened_database(settings: Settings) -> AsyncIterator[Database]:
    """The migrated database of this installation. The server may be running."""
    make_home(settings.home)
    database = Database(database_url(settings))
    try:
        await database.migrate()
        yield database
    finally:
        await database.aclose()


def with_database(work: Callable[[Database], Awaitable[T]]) -> T:
    """Run `work` on the database of this installation, in which there is a team."""

    async def run() -> T:
        settings = read_settings()
        async with opened_database(settings) as database:
            await ensure_first_key(Accounts(database), settings.home)
            return await work(database)

    return asyncio.run(run())
