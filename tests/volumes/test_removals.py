"""Nothing of a deleted volume stays on the engine, and nothing that was not deleted goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from app.accounts import Accounts
from app.database import Database
from app.database.tables import removed_volumes
from app.engines.in_memory_engine import InMemoryEngine
from app.engines.interface import Pod, PodSpec
from app.errors import EngineError, SandboxFailed
from app.vault import Vault
from app.volumes import Removals, VolumePods, Volumes
from tests.in_process import Clock
from tests.volume_room import make_volumes
from tests.volumes.conftest import IMAGE
from tests.waiting import BOUND_S, until


class StubbornEngine(InMemoryEngine):
    """May keep a volume, saying that it is removed, and fail when a volume is half made, as Docker does at times."""

    def __init__(self) -> None:
        super().__init__({IMAGE: {}})
        self.lets_go = True
        self.opens = True

    async def create_volume(self, name: str) -> None:
        await super().create_volume(name)
        if not self.opens:
            raise EngineError("Could not create volume: device busy")

    async def remove_volume(self, name: str) -> bool:
        return await super().remove_volume(name) if self.lets_go else True


class EngineWithAddresses(InMemoryEngine):
    """A pod has an address from the beginning of its start until it is stopped; starts fail, or never end."""

    def __init__(self) -> None:
        super().__init__({IMAGE: {}})
        self.held: set[str] = set()
        self.hangs = False
        self.may_stop = True

    async def start(self, spec: PodSpec) -> Pod:
        self.held.add(spec.pod_id)
        if self.hangs:
            await asyncio.Event().wait()
        raise EngineError("device busy")

    async def stop(self, pod_id: str) -> None:
        if not self.may_stop:
            raise EngineError("device busy")
        await super().stop(pod_id)
        self.held.discard(pod_id)


@pytest.fixture
async def team(database: Database) -> str:
    return (await Accounts(database).create_team("red")).id


@pytest.fixture
def engine() -> StubbornEngine:
    return StubbornEngine()


@pytest.fixture
async def volumes(database: Database, engine: StubbornEngine, clock: Clock, tmp_path: Path) -> AsyncIterator[Volumes]:
    async with httpx.AsyncClient() as http:
        pods = VolumePods(engine=engine, http=http, image=IMAGE)
        yield make_volumes(database, engine, pods, vault=Vault(tmp_path / "encryption-key"), now=clock)


@asynccontextmanager
async def sweeping(database: Database, engine: StubbornEngine, clock: Clock) -> AsyncIterator[None]:
    task = asyncio.create_task(Removals(database=database, engine=engine, now=clock, sweep_s=0.01).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def remembered(database: Database) -> set[str]:
    async with database.reading() as connection:
        return set((await connection.execute(select(removed_volumes.c.id))).scalars())


async def test_a_deleted_volume_that_the_engine_kept_is_removed_later(
    volumes: Volumes, database: Database, engine: StubbornEngine, clock: Clock, team: str
) -> None:
    await engine.create_volume("of-a-database-that-was-restored")
    kept = await volumes.create(team, "kept")
    deleted = await volumes.create(team, "deleted")
    engine.lets_go = False
    await volumes.delete(team, deleted.id)
    assert deleted.id in await engine.volumes()
    async with sweeping(database, engine, clock):
        engine.lets_go = True
        async with asyncio.timeout(BOUND_S):
            while deleted.id in await engine.volumes():
                await asyncio.sleep(0.005)
            assert await remembered(database) == {deleted.id}
            clock.advance(hours=2)
            while await remembered(database):
                await asyncio.sleep(0.005)
    assert await engine.volumes() == {"of-a-database-that-was-restored", kept.id}


async def test_a_volume_that_was_half_made_is_removed_at_once_or_later(
    volumes: Volumes, database: Database, engine: StubbornEngine, clock: Clock, team: str
) -> None:
    engine.opens = False
    with pytest.raises(SandboxFailed):
        await volumes.create(team, "data")
    assert await engine.volumes() == frozenset()
    engine.lets_go = False
    with pytest.raises(SandboxFailed):
        await volumes.create(team, "data")
    assert await engine.volumes() != frozenset()
    engine.lets_go = True
    async with sweeping(database, engine, clock), asyncio.timeout(BOUND_S):
        while await engine.volumes():
            await asyncio.sleep(0.005)
    assert await volumes.list(team) == []


async def test_a_pod_that_did_not_come_up_gives_its_address_back() -> None:
    engine = EngineWithAddresses()
    async with httpx.AsyncClient() as http:
        pods = VolumePods(engine=engine, http=http, image=IMAGE, sweep_s=0.01)

        async def use() -> None:
            async with pods.serving("vol_x"):
                pass

        with pytest.raises(SandboxFailed):
            await use()
        assert engine.held == set()

        engine.hangs = True
        given_up = asyncio.create_task(use())
        await until(lambda: engine.held)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert engine.held == set()

        engine.hangs, engine.may_stop = False, False
        with pytest.raises(SandboxFailed):
            await use()
        engine.may_stop = True
        running = asyncio.create_task(pods.run())
        try:
            await until(lambda: not engine.held)
        finally:
            running.cancel()
            await asyncio.wait([running])
