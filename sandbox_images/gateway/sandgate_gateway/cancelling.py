"""The end of tasks from outside."""

import asyncio
from collections.abc import Collection
from typing import Any


async def cancel_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Returns once all of them have ended, however they take it."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
