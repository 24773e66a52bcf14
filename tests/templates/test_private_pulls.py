"""What one team's credentials fetch is nobody else's, however the build ends that fetched it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from app.database import Database
from app.engines.builds import ImageFacts, RegistryLogin
from app.engines.in_memory_builds import InMemoryBuilds
from app.engines.in_memory_engine import InMemoryEngine
from app.templates import TemplateService
from app.templates.models import Build, BuildStatus
from app.templates.planning import BuildRequest
from tests.in_process import Clock
from tests.template_room import building, make_template_service
from tests.templates.builds import begin, build, finished, log_of, request
from tests.waiting import BOUND_S, settled, until

TOOL = "registry.corp/tool:2"
THEIRS = {"/secret": b"of those with a password"}


def with_login(**more: object) -> BuildRequest:
    return request(from_image=TOOL, login=RegistryLogin(username="ann", password="open-sesame-1234"), **more)


@pytest.fixture
def engine(engine: InMemoryEngine) -> InMemoryEngine:
    engine.builds.registry[TOOL] = THEIRS
    return engine


async def pulling(engine: InMemoryEngine, templates: TemplateService, team: str) -> Build:
    """A build that has begun to fetch the image, which does not end until `may_pull`."""
    engine.builds.may_pull.clear()
    begun = await begin(templates, team, "web", with_login())
    await until(lambda: engine.builds.logins)
    return begun


async def assert_kept_from(other_team: str, templates: TemplateService, engine: InMemoryEngine) -> None:
    engine.builds.registry.clear()
    theirs = await build(templates, other_team, "theirs", request(from_image=TOOL))
    assert theirs.status is BuildStatus.ERROR
    assert not await engine.has_image(TOOL)


async def test_a_template_that_is_deleted_meanwhile_leaves_nothing_to_others(
    templates: TemplateService, engine: InMemoryEngine, team: str, other_team: str
) -> None:
    await pulling(engine, templates, team)
    async with asyncio.timeout(BOUND_S):
        await templates.delete(team, "web")
    engine.builds.may_pull.set()
    await until(lambda: engine.builds.pulled)
    await assert_kept_from(other_team, templates, engine)


async def test_a_build_whose_time_is_over_meanwhile_leaves_nothing_to_others(
    database: Database, engine: InMemoryEngine, tmp_path: Path, clock: Clock, team: str, other_team: str
) -> None:
    templates = make_template_service(database, engine, tmp_path, now=clock, timeout_s=0.2)
    async with building(templates):
        done = await finished(templates, team, await pulling(engine, templates, team))
        assert done.failure is not None
        assert "longer than" in done.failure.message
        engine.builds.may_pull.set()
        await until(lambda: engine.builds.pulled)
        await assert_kept_from(other_team, templates, engine)


async def test_a_process_that_is_killed_meanwhile_leaves_nothing_to_others(
    database: Database, engine: InMemoryEngine, tmp_path: Path, clock: Clock, team: str, other_team: str
) -> None:
    first = make_template_service(database, engine, tmp_path, now=clock)
    async with building(first):
        await pulling(engine, first, team)
    engine.builds.may_pull.set()
    await until(lambda: engine.builds.pulled)
    assert await engine.has_image(TOOL)
    second = make_template_service(database, engine, tmp_path, now=clock)
    async with building(second):
        async with asyncio.timeout(BOUND_S):
            while await engine.has_image(TOOL):
                await asyncio.sleep(0.005)
        await assert_kept_from(other_team, second, engine)


class SlowlyNaming(InMemoryBuilds):
    """Gives no image another name until it may."""

    def __init__(self, *engine_s: Any) -> None:
        super().__init__(*engine_s)
        self.may_name = asyncio.Event()
        self.looks = 0
        """How often somebody looked for an image."""

    async def name_image(self, image: str, name: str) -> None:
        await self.may_name.wait()
        await super().name_image(image, name)

    async def find_image(self, image: str) -> ImageFacts | None:
        self.looks += 1
        return await super().find_image(image)


class EngineThatNamesSlowly(InMemoryEngine):
    def __init__(self) -> None:
        super().__init__({"workspace:1": {}})
        self.builds: SlowlyNaming = SlowlyNaming(self._images, self._answer)


async def test_nobody_finds_it_while_it_has_its_public_name(
    database: Database, tmp_path: Path, clock: Clock, team: str, other_team: str
) -> None:
    engine = EngineThatNamesSlowly()
    engine.builds.registry[TOOL] = THEIRS
    templates = make_template_service(database, engine, tmp_path, now=clock)
    async with building(templates):
        mine = await begin(templates, team, "web", with_login())
        await until(lambda: engine.builds.pulled)
        theirs = await begin(templates, other_team, "web", request(from_image=TOOL))
        await settled(lambda: engine.builds.looks)
        engine.builds.registry.clear()
        engine.builds.may_name.set()
        assert (await finished(templates, other_team, theirs)).status is BuildStatus.ERROR
        said = [line.message for line in await log_of(templates, other_team, theirs)]
        assert "waiting for another build that fetches an image named tool" in said
        assert (await finished(templates, team, mine)).status is BuildStatus.READY


async def test_one_that_is_here_is_built_from_while_another_of_that_name_is_fetched_for_all(
    templates: TemplateService, engine: InMemoryEngine, team: str, other_team: str
) -> None:
    await build(templates, team, "here", request(from_image=TOOL))
    engine.builds.registry["registry.corp/tool:3"] = {}
    engine.builds.may_pull.clear()
    slow = await begin(templates, other_team, "web", request(from_image="registry.corp/tool:3"))
    await until(lambda: len(engine.builds.logins) == 2)
    assert (await build(templates, team, "again", request(from_image=TOOL))).status is BuildStatus.READY
    engine.builds.may_pull.set()
    assert (await finished(templates, other_team, slow)).status is BuildStatus.READY


async def test_what_had_the_name_before_has_it_afterwards(
    templates: TemplateService, engine: InMemoryEngine, team: str, other_team: str
) -> None:
    engine.builds.registry[TOOL] = {"/free": b"for all"}
    await build(templates, other_team, "public", request(from_image=TOOL))
    engine.builds.registry[TOOL] = THEIRS
    mine = await build(templates, team, "web", with_login(force=True))
    assert mine.status is BuildStatus.READY
    assert mine.image is not None
    assert await engine.read_file(mine.image, "/secret") == THEIRS["/secret"]
    assert await engine.read_file(TOOL, "/free") == b"for all"


async def test_a_pull_that_fails_leaves_the_name_as_it_was(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    await build(templates, team, "public", request(from_image=TOOL))
    engine.builds.registry.clear()
    mine = await build(templates, team, "web", with_login(force=True))
    assert mine.status is BuildStatus.READY
    assert any("Using the one that is here" in line.message for line in await log_of(templates, team, mine))
    assert await engine.has_image(TOOL)
