"""The template room's statements, on every database."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from app.accounts import Accounts
from app.database import Database
from app.errors import InvalidRequest
from app.ids_and_time import new_template_id
from app.templates.models import Build, BuildFailure, BuildStatus, LogLine, Runs, Template
from app.templates.store import TemplateStore
from app.vault import Vault

NOW = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
RUNS = Runs(user="bob", workdir=None, envs={"A": "ü"}, start_command="serve", ready_command="probe")


@pytest.fixture
def store(database: Database, tmp_path: Path) -> TemplateStore:
    return TemplateStore(database, Vault(tmp_path / "key"))


@pytest.fixture
async def team(database: Database) -> str:
    return (await Accounts(database).create_team("red")).id


def template(team: str, **fields: object) -> Template:
    values = {"id": new_template_id(), "kind": "template", "name": "web", "public": False, **fields}
    return Template(team_id=team, created_at=NOW, updated_at=NOW, **values)  # type: ignore[arg-type]


def build(**fields: object) -> Build:
    values = {"id": str(uuid4()), "template_id": "", "status": BuildStatus.WAITING, "created_at": NOW, **fields}
    return Build(**values)  # type: ignore[arg-type]


async def test_a_build_is_read_as_it_was_written(store: TemplateStore, team: str) -> None:
    known, waiting = await store.add_build(template(team), build(wanted_tags=("v1",), cpus=2, memory_mib=512))
    assert await store.find_build(known.id, waiting.id) == waiting
    failure = BuildFailure(message="no", step="1", log=(LogLine(at=NOW, message="last", level="error", step="1"),))
    done = replace(waiting, status=BuildStatus.ERROR, failure=failure, runs=RUNS, has_gateway=True)
    assert await store.finish_build(done, NOW)
    assert await store.find_build(known.id, waiting.id) == replace(done, finished_at=NOW)
    assert await store.find_build("another", waiting.id) is None


async def test_steps_are_taken_once(store: TemplateStore, team: str) -> None:
    _, waiting = await store.add_build(template(team), build())
    assert await store.begin_build(waiting.id, NOW)
    assert not await store.begin_build(waiting.id, NOW)


async def test_a_name_is_one_template_and_of_one_kind(store: TemplateStore, team: str) -> None:
    first, _ = await store.add_build(template(team), build())
    second, other = await store.add_build(template(team), build())
    assert first.id == second.id == other.template_id
    with pytest.raises(InvalidRequest):
        await store.add_build(template(team, kind="snapshot"), build())
    nameless = [await store.add_build(template(team, kind="snapshot", name=None), build()) for _ in range(2)]
    assert nameless[0][0].id != nameless[1][0].id


async def test_tags_move_to_a_build_once_it_is_ready(store: TemplateStore, team: str) -> None:
    known, first = await store.add_build(template(team), build(wanted_tags=("default",)))
    assert await store.tagged_build(known.id, "default") is None
    await store.finish_build(replace(first, status=BuildStatus.READY, image="i:1"), NOW)
    _, second = await store.add_build(template(team), build(wanted_tags=("default", "v2")))
    await store.finish_build(replace(second, status=BuildStatus.READY, image="i:2"), NOW + timedelta(hours=2))
    assert {tag.tag: tag.build_id for tag in await store.tags(known.id)} == {"default": second.id, "v2": second.id}

    # The first one's image is of no use any more.
    await store.drop_untagged_images(NOW)
    assert await store.images() == {"i:1", "i:2"}
    await store.drop_untagged_images(NOW + timedelta(seconds=1))
    assert await store.images() == {"i:2"}
    assert (await store.layers())["i:1"] < NOW - timedelta(days=365)


async def test_a_deleted_template_takes_everything_along(store: TemplateStore, team: str) -> None:
    known, done = await store.add_build(
        template(team), build(status=BuildStatus.READY, image="i:1", wanted_tags=("default",))
    )
    await store.add_log(done.id, 0, [LogLine(at=NOW, message="said")])
    await store.delete_template(known.id)
    assert await store.find_template(team, "web") is None
    assert await store.log(done.id, offset=0, limit=10) == []
    assert set(await store.layers()) == {"i:1"}
    assert not await store.finish_build(done, NOW)


async def test_builds_that_nobody_carries_out_any_more_are_failed(store: TemplateStore, team: str) -> None:
    _, asked = await store.add_build(template(team), build(created_at=NOW))
    _, old = await store.add_build(template(team), build(created_at=NOW - timedelta(days=2)))
    _, begun = await store.add_build(template(team), build())
    await store.begin_build(begun.id, NOW)
    await store.mark_building(begun.id)
    await store.abandon_builds(BuildFailure(message="cut off"), NOW, forgotten_before=NOW - timedelta(days=1))
    found = {one.id: one for one in (await store.builds_of([asked.template_id]))[asked.template_id]}
    assert {one: found[one].status for one in (asked.id, old.id, begun.id)} == {
        asked.id: BuildStatus.WAITING,
        old.id: BuildStatus.ERROR,
        begun.id: BuildStatus.ERROR,
    }
    assert found[begun.id].failure == BuildFailure(message="cut off")


async def test_a_log_is_read_from_any_position(store: TemplateStore, team: str) -> None:
    _, one = await store.add_build(template(team), build())
    lines = [LogLine(at=NOW, message=f"line {n}", step="1") for n in range(5)]
    await store.add_log(one.id, 0, lines[:3])
    await store.add_log(one.id, 3, lines[3:])
    assert await store.log(one.id, offset=2, limit=2) == lines[2:4]
    assert await store.log(one.id, offset=5, limit=2) == []


async def test_snapshots_of_one_moment_are_still_paged_completely(store: TemplateStore, team: str) -> None:
    for number in range(5):
        ready = build(status=BuildStatus.READY, image=f"s:{number}", wanted_tags=("default",))
        await store.add_build(template(team, kind="snapshot", name=None, sandbox_id="i1"), ready)
    seen: list[str] = []
    before = None
    while page := await store.list_snapshots(team, sandbox_id="i1", name=None, tag=None, before=before, limit=2):
        seen += [tag.build_id for _, tag in page]
        before = (page[-1][1].created_at, page[-1][1].build_id)
    assert len(seen) == len(set(seen)) == 5


async def test_spawns_and_layers_are_counted_up(store: TemplateStore, team: str) -> None:
    known, _ = await store.add_build(template(team), build())
    await store.count_spawn(known.id, NOW)
    await store.count_spawn(known.id, NOW)
    found = await store.find_template(team, known.id)
    assert found is not None
    assert (found.spawn_count, found.last_spawned_at) == (2, NOW)
    await store.layer_used("l:1", NOW)
    await store.layer_used("l:1", NOW + timedelta(days=1))
    assert await store.layers() == {"l:1": NOW + timedelta(days=1)}
    await store.forget_layer("l:1")
    assert await store.layers() == {}


async def test_a_name_that_two_requests_take_at_once_is_one_template(store: TemplateStore, team: str) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(store.add_build(template(team), build())) for _ in range(4)]
    assert len({task.result()[0].id for task in tasks}) == 1
    assert len({task.result()[1].id for task in tasks}) == 4


async def test_a_layer_that_two_builds_use_at_once_is_recorded_once(store: TemplateStore) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(store.layer_used("l:1", NOW))
    assert await store.layers() == {"l:1": NOW}
