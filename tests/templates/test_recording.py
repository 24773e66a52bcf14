"""How a build went is recorded though the database is away for a while, or does not take the log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from app.database import Database
from app.engines.builds import BuildStep, OnOutput
from app.engines.in_memory_engine import InMemoryEngine
from app.errors import DatabaseLocked
from app.templates.models import Build, BuildStatus, LogLine
from app.templates.store import TemplateStore
from app.vault import Vault
from tests.in_process import Clock
from tests.template_room import building, make_template_service
from tests.templates.builds import begin, build, log_of, request, run
from tests.waiting import BOUND_S


def locked() -> DatabaseLocked:
    return DatabaseLocked("The database could not be used in time.")


class StoreThatIsAwayOnce(TemplateStore):
    """Takes what has to be recorded of a build when it is told for the second time."""

    def __init__(self, database: Database, vault: Vault) -> None:
        super().__init__(database, vault)
        self._refused: set[str] = set()

    async def mark_building(self, build_id: str) -> None:
        self._refuse_once("mark")
        await super().mark_building(build_id)

    async def add_log(self, build_id: str, begin: int, lines: Sequence[LogLine]) -> None:
        self._refuse_once("log")
        await super().add_log(build_id, begin, lines)

    async def finish_build(self, build: Build, now: datetime) -> bool:
        self._refuse_once("finish")
        return await super().finish_build(build, now)

    def _refuse_once(self, what: str) -> None:
        if what not in self._refused:
            self._refused.add(what)
            raise locked()


class StoreWithoutLogs(TemplateStore):
    async def add_log(self, build_id: str, begin: int, lines: Sequence[LogLine]) -> None:
        raise locked()


async def test_a_database_that_is_away_for_a_while_loses_no_build(
    database: Database, engine: InMemoryEngine, tmp_path: Path, clock: Clock, team: str
) -> None:
    templates = make_template_service(database, engine, tmp_path, now=clock, store_class=StoreThatIsAwayOnce)
    async with building(templates):
        done = await build(templates, team, "web", request(run("a")))
        assert done.status is BuildStatus.READY
        assert (await log_of(templates, team, done))[-1].message == "Build finished."


async def test_a_log_that_cannot_be_written_keeps_no_build_from_ending(
    database: Database, engine: InMemoryEngine, tmp_path: Path, clock: Clock, team: str
) -> None:
    templates = make_template_service(database, engine, tmp_path, now=clock, store_class=StoreWithoutLogs)
    async with building(templates):
        assert (await build(templates, team, "web", request(run("a")))).status is BuildStatus.READY


async def test_lines_appear_during_the_build_though_some_could_not_be_written_at_first(
    database: Database, engine: InMemoryEngine, tmp_path: Path, clock: Clock, team: str
) -> None:
    go_on = asyncio.Event()

    async def print_and_wait(step: BuildStep, on_output: OnOutput) -> int:
        on_output(b"hello\n")
        await go_on.wait()
        return 0

    engine.builds.behave = print_and_wait
    templates = make_template_service(database, engine, tmp_path, now=clock, store_class=StoreThatIsAwayOnce)
    async with building(templates):
        begun = await begin(templates, team, "web", request(run("a")))
        async with asyncio.timeout(BOUND_S):
            while "hello" not in [line.message for line in await log_of(templates, team, begun)]:
                await asyncio.sleep(0.005)
