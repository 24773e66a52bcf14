"""Names, tags, visibility, deletion and snapshots."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.database import Database
from app.engines.in_memory_engine import InMemoryEngine
from app.errors import BodyTooLarge, InvalidRequest, NotFound, Unauthorized
from app.templates import ResolvedTemplate, TemplateService
from app.templates.planning import Step
from tests.in_process import Clock
from tests.template_room import building, make_template_service
from tests.templates.builds import HangingStep, all_bytes_in, archive, begin, build, hash_of, in_chunks, request, run
from tests.waiting import BOUND_S


async def gone(engine: InMemoryEngine, image: str) -> None:
    async with asyncio.timeout(BOUND_S):
        while await engine.has_image(image):
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(("name", "has_gateway"), [("base", False), ("mcp-gateway", True), ("base:default", False)])
async def test_built_in_templates_are_always_there(
    templates: TemplateService, team: str, name: str, has_gateway: bool
) -> None:
    resolved = await templates.resolve(team, name)
    assert (resolved.kind, resolved.image, resolved.has_gateway) == ("built-in", None, has_gateway)


async def test_built_in_templates_cannot_be_changed(templates: TemplateService, team: str) -> None:
    for attempt in (
        templates.delete(team, "base"),
        templates.set_public(team, "mcp-gateway", False),
        templates.assign_tags(team, "base", ["v1"]),
        templates.request_build(team, "base:v2", cpus=None, memory_mib=None),
    ):
        with pytest.raises(InvalidRequest, match="comes with Sandgate"):
            await attempt


@pytest.mark.parametrize("reference", ["absent", "base:v9", "other/base", "tabsentabsentabsent"])
async def test_what_is_not_there_is_not_found(templates: TemplateService, team: str, reference: str) -> None:
    with pytest.raises(NotFound):
        await templates.resolve(team, reference)


async def test_a_template_is_found_by_name_id_and_namespace(templates: TemplateService, team: str) -> None:
    done = await build(templates, team, "web:v1", request(), tags=["default"])
    for reference in ("web", "web:v1", done.template_id, f"{done.template_id}:v1", f"{team}/web", "WEB:V1"):
        assert (await templates.resolve(team, reference)).build_id == done.id
    with pytest.raises(NotFound, match="It has: default, v1"):
        await templates.resolve(team, "web:v2")


async def test_building_again_under_a_name_is_the_same_template(templates: TemplateService, team: str) -> None:
    first = await build(templates, team, "web", request())
    second = await build(templates, team, "web:v2", request(run("b")))
    assert first.template_id == second.template_id
    assert (await templates.resolve(team, "web")).build_id == first.id
    assert (await templates.resolve(team, "web:v2")).build_id == second.id
    third = await build(templates, team, "web", request(run("c")))
    assert (await templates.resolve(team, "web")).build_id == third.id


async def test_a_private_template_is_its_teams_alone(templates: TemplateService, team: str, other_team: str) -> None:
    done = await build(templates, team, "web", request())
    for reference in ("web", done.template_id, f"{team}/web"):
        with pytest.raises(NotFound):
            await templates.resolve(other_team, reference)


async def test_a_public_template_can_be_used_by_others_and_changed_by_none_of_them(
    templates: TemplateService, team: str, other_team: str
) -> None:
    done = await build(templates, team, "web", request())
    await templates.set_public(team, "web", True)
    for reference in (done.template_id, f"{team}/web"):
        assert (await templates.resolve(other_team, reference)).build_id == done.id
    for attempt in (
        templates.delete(other_team, done.template_id),
        templates.set_public(other_team, done.template_id, False),
        templates.assign_tags(other_team, f"{team}/web", ["mine"]),
        templates.upload_link(other_team, done.template_id, "a" * 64),
        templates.build_status(other_team, done.template_id, done.id),
        templates.start_build(other_team, done.template_id, done.id, request()),
    ):
        with pytest.raises(NotFound):
            await attempt
    # Its bare name belongs to whoever has a template of that name.
    with pytest.raises(NotFound):
        await templates.resolve(other_team, "web")


async def test_two_teams_may_use_the_same_name(templates: TemplateService, team: str, other_team: str) -> None:
    one = await build(templates, team, "web", request())
    other = await build(templates, other_team, "web", request())
    assert one.template_id != other.template_id
    assert (await templates.resolve(team, "web")).build_id == one.id
    assert (await templates.resolve(other_team, "web")).build_id == other.id


async def test_tags_are_assigned_listed_and_removed(templates: TemplateService, team: str) -> None:
    done = await build(templates, team, "web:v1", request())
    assert await templates.assign_tags(team, "web:v1", ["prod", "Latest", "prod"]) == (done.id, ("prod", "latest"))
    assert {tag.tag: tag.build_id for tag in await templates.tags(team, "web")} == dict.fromkeys(
        ("v1", "prod", "latest"), done.id
    )
    await templates.remove_tags(team, "web", ["prod"])
    with pytest.raises(NotFound, match="prod"):
        await templates.remove_tags(team, "web", ["latest", "prod"])
    assert {tag.tag for tag in await templates.tags(team, "web")} == {"v1", "latest"}


@pytest.mark.parametrize("tag", [":x", "web:", "", "a:b", "0b8e1c1e-6a4f-4a70-9d27-0d7f3c2b4a55"])
async def test_a_tag_of_the_wrong_form_is_refused(templates: TemplateService, team: str, tag: str) -> None:
    await build(templates, team, "web:v1", request())
    with pytest.raises(InvalidRequest):
        await templates.assign_tags(team, "web:v1", [tag])


async def test_the_default_tag_cannot_be_removed(templates: TemplateService, team: str) -> None:
    await build(templates, team, "web", request())
    with pytest.raises(InvalidRequest, match="default"):
        await templates.remove_tags(team, "web", ["default"])


async def test_a_deleted_template_is_gone_with_its_image(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    await build(templates, team, "web", request(run("a")))
    image = (await templates.resolve(team, "web")).image
    assert image is not None
    await templates.delete(team, "web")
    with pytest.raises(NotFound):
        await templates.resolve(team, "web")
    with pytest.raises(NotFound):
        await templates.delete(team, "web")
    await gone(engine, image)


async def test_a_template_in_use_cannot_be_deleted(
    database: Database, engine: InMemoryEngine, tmp_path: Path, clock: Clock, team: str
) -> None:
    used: set[str] = set()

    async def in_use(template_id: str) -> bool:
        return template_id in used

    templates = make_template_service(database, engine, tmp_path, now=clock, in_use=in_use)
    async with building(templates):
        done = await build(templates, team, "web", request())
        used.add(done.template_id)
        with pytest.raises(InvalidRequest, match="while sandboxes use it"):
            await templates.delete(team, "web")
        used.clear()
        await templates.delete(team, "web")


async def test_deleting_a_template_ends_its_build(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    engine.builds.behave = hanging = HangingStep()
    await begin(templates, team, "web", request(run("sleep")))
    await hanging.reached.wait()
    await templates.delete(team, "web")
    assert engine.builds.is_idle


async def test_lists_show_the_teams_templates_and_the_built_in_ones(
    templates: TemplateService, team: str, other_team: str
) -> None:
    await build(templates, other_team, "theirs", request())
    await build(templates, team, "older", request())
    done = await build(templates, team, "newer", request())
    await templates.count_spawn(done.template_id)
    await templates.count_spawn("base")
    views = await templates.templates(team)
    assert [view.template.name for view in views] == ["newer", "older", "base", "mcp-gateway"]
    assert [view.template.spawn_count for view in views] == [1, 0, 0, 0]
    assert views[0].template.last_spawned_at is not None


async def test_superseded_images_and_unused_layers_go_after_a_while(
    database: Database, engine: InMemoryEngine, tmp_path: Path, clock: Clock, team: str
) -> None:
    first_life = make_template_service(database, engine, tmp_path, now=clock)
    async with building(first_life):
        await build(first_life, team, "web", request(run("a")))
        old = (await first_life.resolve(team, "web")).image
        await build(first_life, team, "web", request(run("b")))
        new = (await first_life.resolve(team, "web")).image
    assert old is not None
    assert new is not None
    layers = [step.result.name for step in engine.builds.steps if step.result]
    clock.advance(days=8)
    second_life = make_template_service(database, engine, tmp_path, now=clock)
    async with building(second_life):
        for image in (old, *layers):
            await gone(engine, image)
        assert await engine.has_image(new)


# -- uploads ----------------------------------------------------------------------------------------------------------


async def test_an_upload_needs_the_signature_that_was_given_out_for_it(
    templates: TemplateService, team: str, other_team: str, clock: Clock
) -> None:
    content = archive(a="b")
    files_hash = hash_of(content)
    template, _ = await templates.request_build(team, "web", cpus=None, memory_mib=None)
    _, link = await templates.upload_link(team, template.id, files_hash)
    for changed in (
        {**link, "signature": "0" * 64},
        {**link, "signature": "ü"},
        {**link, "team": other_team},
        {**link, "expires": str(int(link["expires"]) + 1)},
    ):
        with pytest.raises(Unauthorized, match="signature"):
            await templates.receive_files(files_hash, **changed, body=in_chunks(content))
    with pytest.raises(Unauthorized, match="signature"):
        await templates.receive_files("b" * 64, **link, body=in_chunks(content))
    clock.advance(hours=2)
    with pytest.raises(Unauthorized, match="expired"):
        await templates.receive_files(files_hash, **link, body=in_chunks(content))


async def test_an_upload_is_bounded_and_must_be_a_tar(templates: TemplateService, team: str, tmp_path: Path) -> None:
    template, _ = await templates.request_build(team, "web", cpus=None, memory_mib=None)
    _, link = await templates.upload_link(team, template.id, "a" * 64)
    with pytest.raises(BodyTooLarge, match="1 MiB"):
        await templates.receive_files("a" * 64, **link, body=in_chunks(bytes(1024 * 1024 + 1), 64 * 1024))
    with pytest.raises(InvalidRequest, match="not a tar"):
        await templates.receive_files("a" * 64, **link, body=in_chunks(b"PK\x03\x04 a zip"))
    assert all_bytes_in(tmp_path / "template-files") == b""


@pytest.mark.parametrize("files_hash", ["../../etc/passwd", "A" * 64, "a" * 63, ""])
async def test_a_hash_is_never_a_path(templates: TemplateService, team: str, files_hash: str) -> None:
    template, _ = await templates.request_build(team, "web", cpus=None, memory_mib=None)
    with pytest.raises(InvalidRequest, match="SHA-256"):
        await templates.upload_link(team, template.id, files_hash)


# -- snapshots --------------------------------------------------------------------------------------------------------


async def base(templates: TemplateService, team: str) -> ResolvedTemplate:
    return await templates.resolve(team, "mcp-gateway")


async def test_a_snapshot_is_started_from_by_its_id(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    snapshot = await templates.add_snapshot(
        team, sandbox_id="i1", image="snap:1", name=None, base=await base(templates, team)
    )
    assert snapshot.names == ()
    for reference in (snapshot.snapshot_id, snapshot.snapshot_id.partition(":")[0]):
        resolved = await templates.resolve(team, reference)
        assert (resolved.kind, resolved.image, resolved.has_gateway) == ("snapshot", "snap:1", True)
    assert [view.template.name for view in await templates.templates(team)] == ["base", "mcp-gateway"]


async def test_a_named_snapshot_is_found_by_name_and_tag(templates: TemplateService, team: str) -> None:
    below = await base(templates, team)
    first = await templates.add_snapshot(team, sandbox_id="i1", image="snap:1", name="state", base=below)
    second = await templates.add_snapshot(team, sandbox_id="i1", image="snap:2", name="state:v2", base=below)
    assert (first.snapshot_id, first.names) == ("state:default", ("state:default",))
    assert (await templates.resolve(team, "state")).image == "snap:1"
    assert (await templates.resolve(team, second.snapshot_id)).image == "snap:2"
    page = await templates.list_snapshots(team, name="state", limit=10, cursor=None)
    assert [snapshot.names for snapshot in page.snapshots] == [("state:v2",), ("state:default",)]
    tagged = await templates.list_snapshots(team, name="state:v2")
    assert [snapshot.snapshot_id for snapshot in tagged.snapshots] == ["state:v2"]
    await templates.delete(team, second.snapshot_id)
    with pytest.raises(NotFound):
        await templates.resolve(team, "state:v2")
    assert (await templates.resolve(team, "state")).image == "snap:1"
    await templates.delete(team, first.snapshot_id)
    with pytest.raises(NotFound):
        await templates.delete(team, first.snapshot_id)


async def test_a_snapshot_cannot_take_the_name_of_a_template(templates: TemplateService, team: str) -> None:
    await build(templates, team, "web", request())
    with pytest.raises(InvalidRequest, match="is that of a template"):
        await templates.add_snapshot(
            team, sandbox_id="i1", image="snap:1", name="web", base=await base(templates, team)
        )


async def test_the_image_of_a_deleted_snapshot_is_removed(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    await engine.builds.name_image("debian:12", "snap:1")
    snapshot = await templates.add_snapshot(
        team, sandbox_id="i1", image="snap:1", name=None, base=await base(templates, team)
    )
    await templates.delete(team, snapshot.snapshot_id)
    await gone(engine, "snap:1")


async def test_snapshots_are_listed_page_by_page_whatever_comes_meanwhile(
    templates: TemplateService, team: str, other_team: str
) -> None:
    below = await base(templates, team)
    await templates.add_snapshot(other_team, sandbox_id="i9", image="snap:9", name=None, base=below)
    taken = [
        await templates.add_snapshot(team, sandbox_id=f"i{n % 2}", image=f"snap:{n}", name=None, base=below)
        for n in range(5)
    ]
    ids = [snapshot.snapshot_id for snapshot in reversed(taken)]
    first = await templates.list_snapshots(team, limit=2)
    await templates.add_snapshot(team, sandbox_id="i1", image="snap:new", name=None, base=below)
    second = await templates.list_snapshots(team, limit=2, cursor=first.cursor)
    third = await templates.list_snapshots(team, limit=2, cursor=second.cursor)
    pages = [*first.snapshots, *second.snapshots, *third.snapshots]
    assert [snapshot.snapshot_id for snapshot in pages] == ids
    assert third.cursor is None
    of_one = await templates.list_snapshots(team, "i0", limit=10)
    assert [snapshot.sandbox_id for snapshot in of_one.snapshots] == ["i0"] * 3


@pytest.mark.parametrize(
    "cursor", ["nonsense", "!!!", "AAAA", "MjAyNi0wMS0wMQ==", "MDAwMS0wMS0wMVQwMDowMDowMCsxNDowMF9feA=="]
)
async def test_an_unknown_cursor_is_refused(templates: TemplateService, team: str, cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="nextToken"):
        await templates.list_snapshots(team, limit=2, cursor=cursor)


async def test_nothing_of_a_builds_environment_lies_in_clear(
    templates: TemplateService, team: str, tmp_path: Path
) -> None:
    await build(templates, team, "web", request(Step(kind="ENV", args=("KEY", "open-sesame-1234"))))
    assert b"open-sesame-1234" not in all_bytes_in(tmp_path)
    assert (await templates.resolve(team, "web")).envs == {"KEY": "open-sesame-1234"}
