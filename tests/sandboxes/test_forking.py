"""A fork makes all of its copies or leaves none."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from app.engines.in_memory_engine import InMemoryEngine
from app.sandboxes.listing import Listing
from tests.in_process import ControlPlane, request
from tests.waiting import BOUND_S

_REFUSE_THE_THIRD_COPY = """
CREATE TRIGGER refuse BEFORE INSERT ON sandboxes
WHEN (SELECT count(*) FROM sandboxes WHERE fork_image IS NOT NULL) = 2
BEGIN SELECT RAISE(ABORT, 'refused'); END
"""


def execute(file: Path, statement: str) -> None:
    """In a thread, because the control plane may be about to write."""
    database = sqlite3.connect(file, isolation_level=None)
    database.execute(statement)
    database.close()


async def test_a_copy_that_cannot_be_recorded_takes_the_others_with_it(
    control_plane: ControlPlane, engine: InMemoryEngine, tmp_path: Path
) -> None:
    source = (await control_plane.service.create(control_plane.team_id, request())).sandbox
    await asyncio.to_thread(execute, tmp_path / "test.db", _REFUSE_THE_THIRD_COPY)
    with pytest.raises(IntegrityError, match="refused"):
        await control_plane.service.fork(control_plane.team_id, source.id, count=4, timeout_s=60)
    async with asyncio.timeout(BOUND_S):
        while [pod.sandbox_id for pod in (await control_plane.store.pods()).values()] != [source.id]:
            await asyncio.sleep(0.002)
    assert (await control_plane.service.page(control_plane.team_id, Listing())).sandboxes == [source]
    assert len(await engine.observe()) == 1
