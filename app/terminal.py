"""What the commands of `sandgate` share: where they print, and how they get at the database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rich.console import Console

from app.accounts import Accounts
from app.database import Database
from app.home import make_home
from app.main import database_url, ensure_first_key
from app.settings import read_settings

T = TypeVar("T")

console = Console(stderr=True, highlight=False)
"""Progress and errors."""
out = Console(highlight=False)
"""What was asked for."""


def with_database(work: Callable[[Database], Awaitable[T]]) -> T:
    """Run `work` on the migrated database of this installation. The server may be running."""

    async def run() -> T:
        settings = read_settings()
        make_home(settings.home)
        database = Database(database_url(settings))
        try:
            await database.migrate()
            await ensure_first_key(Accounts(database), settings.home)
            return await work(database)
        finally:
            await database.aclose()

    return asyncio.run(run())
