"""What the commands of `sandgate` share: where they print, and how they get at the database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rich.console import Console

from app.accounts import Accounts
from app.database import Database
from app.main import ensure_first_key, opened_database
from app.settings import read_settings

T = TypeVar("T")

console = Console(stderr=True, highlight=False)
"""Progress and errors."""
out = Console(highlight=False)
"""What was asked for."""


def with_database(work: Callable[[Database], Awaitable[T]]) -> T:
    """Run `work` on the database of this installation, in which there is a team."""

    async def run() -> T:
        settings = read_settings()
        async with opened_database(settings) as database:
            await ensure_first_key(Accounts(database), settings.home)
            return await work(database)

    return asyncio.run(run())
