"""A start that cannot succeed ends, and says why in one line."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from starlette.types import Message

from app.errors import SandgateError
from app.main import check_start, make_app
from app.settings import Settings
from tests.waiting import BOUND_S


def damage(file: Path) -> None:
    database = sqlite3.connect(file, isolation_level=None)
    database.execute("DROP TABLE sandboxes")
    database.close()


async def test_a_part_that_does_not_come_up_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    await check_start(settings)
    damage(tmp_path / "sandgate.db")
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(SandgateError):
        async with asyncio.timeout(BOUND_S):
            await make_app(settings)({"type": "lifespan", "state": {}}, receive, send)
    (failed,) = sent
    assert failed["type"] == "lifespan.startup.failed"
    assert "The reconciler could not be started" in failed["message"]
    assert "no such table: sandboxes" in failed["message"]
    assert len(failed["message"].splitlines()) == 1
