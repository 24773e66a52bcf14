"""What happens in a build, on an engine in memory that records the steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.database import Database
from app.engines.builds import BuildStep, OnOutput, RegistryLogin
from app.engines.in_memory_builds import Behaviour
from app.engines.in_memory_engine import InMemoryEngine
from app.errors import InvalidRequest, NotFound, OutOfSpace
from app.templates import TemplateService
from app.templates.build_log import MOST_LINES
from app.templates.models import BuildStatus, Runs
from app.templates.planning import Step
from tests.in_process import Clock
from tests.template_room import NAMESPACE, building, make_template_service
from tests.templates.builds import (
    HangingStep,
    action,
    all_bytes_in,
    archive,
    begin,
    build,
    finished,
    hash_of,
    in_chunks,
    log_of,
    request,
    run,
)
from tests.waiting import BOUND_S


def commands(engine: InMemoryEngine) -> list[str]:
    """Of the RUN steps that had a container, in order."""
    actions = [action(step) for step in engine.builds.steps]
    return [found["command"] for found in actions if found and found["do"] == "run"]


def playing(*outcomes: tuple[bytes, int]) -> Behaviour:
    """Steps print and exit like this, one after the other; further ones do nothing."""
    left = list(outcomes)

    async def behave(step: BuildStep, on_output: OnOutput) -> int:
        output, code = left.pop(0) if left else (b"", 0)
        on_output(output)
        return code

    return behave


async def test_a_built_template_is_what_sandboxes_start_from(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    plan = request(
        Step(kind="ENV", args=("A", "1")),
        Step(kind="WORKDIR", args=("/app",)),
        Step(kind="USER", args=("bob",)),
        run("make"),
        start_command="serve",
        ready_command="probe",
    )
    done = await build(templates, team, "web", plan, cpus=4, memory_mib=2048)
    assert done.status is BuildStatus.READY
    resolved = await templates.resolve(team, "web")
    assert (resolved.template_id, resolved.build_id) == (done.template_id, done.id)
    assert resolved.image == f"{NAMESPACE}/template:{done.id}"
    assert await engine.has_image(resolved.image)
    assert (resolved.name, resolved.kind, resolved.has_gateway) == ("web", "template", False)
    assert (resolved.user, resolved.workdir, resolved.envs) == ("bob", "/app", {"A": "1"})
    assert (resolved.start_command, resolved.ready_command) == ("serve", "probe")
    assert (resolved.cpus, resolved.memory_mib) == (4, 2048)


async def test_steps_run_with_the_limits_of_the_template(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    await build(templates, team, "web", request(run("make")), cpus=4, memory_mib=2048)
    (step,) = engine.builds.steps
    assert (step.limits.cpus, step.limits.memory_mib, step.limits.pids) == (4, 2048, 100)
    assert step.capabilities == ("CHOWN",)


async def test_each_step_starts_from_the_files_of_the_one_before(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    await build(templates, team, "web", request(run("a"), run("b")))
    first, second = engine.builds.steps
    assert first.image == "sha256:workspace:1"
    assert first.result is not None
    assert second.image == first.result.name


async def test_no_step_shows_its_command_or_environment_to_whoever_may_list_containers(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    await build(templates, team, "web", request(Step(kind="ENV", args=("KEY", "sesame")), run("use sesame")))
    (step,) = engine.builds.steps
    assert "sesame" not in repr(step)


async def test_the_log_is_read_page_by_page_and_ends_with_an_empty_one(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    engine.builds.behave = playing((b"".join(b"line %d\n" % n for n in range(250)), 0))
    done = await build(templates, team, "web", request(run("count")))
    _, page = await templates.build_status(team, done.template_id, done.id, offset=0, limit=1000)
    assert len(page) == 100
    lines = await log_of(templates, team, done)
    assert [line.message for line in lines if line.message.startswith("line ")] == [f"line {n}" for n in range(250)]
    assert {line.step for line in lines} == {"base", "1", "finalize"}
    _, after = await templates.build_status(team, done.template_id, done.id, offset=len(lines))
    assert after == []


async def test_output_is_split_into_lines_however_it_arrives(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    async def dribble(step: BuildStep, on_output: OnOutput) -> int:
        for chunk in (b"on", b"e\ntw", b"o\r\n\x00th", b"ree\r", b"\xff"):
            on_output(chunk)
        return 0

    engine.builds.behave = dribble
    done = await build(templates, team, "web", request(run("x")))
    said = [line.message for line in await log_of(templates, team, done) if line.step == "1"]
    assert said == ["[1/1] RUN x", "one", "two", "three", "�"]


async def test_a_log_is_bounded(templates: TemplateService, engine: InMemoryEngine, team: str) -> None:
    engine.builds.behave = playing((b"x\n" * (MOST_LINES + 500) + b"y" * 100_000, 0))
    done = await build(templates, team, "web", request(run("flood")))
    _, last = await templates.build_status(team, done.template_id, done.id, offset=MOST_LINES)
    assert done.status is BuildStatus.READY
    assert [line.message for line in last] == [f"The log ends here: it has {MOST_LINES} lines."]


async def test_a_failed_step_tells_its_number_and_last_lines(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    engine.builds.behave = playing((b"fine\n", 0), (b"trying\nbroken\n", 3))
    done = await build(templates, team, "web", request(run("one"), run("two"), run("three")))
    assert done.status is BuildStatus.ERROR
    assert done.failure is not None
    assert done.failure.step == "2"
    assert done.failure.message == "failed to run command 'two': command failed: exit status 3"
    assert [line.message for line in done.failure.log] == ["[2/3] RUN two", "trying", "broken"]
    assert commands(engine) == ["one", "two"]
    with pytest.raises(NotFound, match="None of its builds is ready"):
        await templates.resolve(team, "web")


async def test_a_failed_build_leaves_the_one_before_in_place(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    good = await build(templates, team, "web", request(run("a")))
    engine.builds.behave = playing((b"", 1))
    await build(templates, team, "web", request(run("b")))
    assert (await templates.resolve(team, "web")).build_id == good.id


async def test_a_step_that_was_done_before_is_not_done_again(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    await build(templates, team, "web", request(run("a"), run("b")))
    done = await build(templates, team, "other", request(run("a"), run("c")))
    assert commands(engine) == ["a", "b", "c"]
    assert "taken from the cache" in [line.message for line in await log_of(templates, team, done)]


async def test_no_team_gets_a_layer_of_another(
    templates: TemplateService, engine: InMemoryEngine, team: str, other_team: str
) -> None:
    await build(templates, team, "web", request(run("a")))
    await build(templates, other_team, "web", request(run("a")))
    assert commands(engine) == ["a", "a"]


async def test_a_forced_step_and_all_that_follow_are_done_again(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    await build(templates, team, "web", request(run("a"), run("b"), run("c")))
    await build(templates, team, "web", request(run("a"), run("b", force=True), run("c")))
    assert commands(engine) == ["a", "b", "c", "b", "c"]


async def test_a_forced_build_does_everything_again(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    await build(templates, team, "web", request(run("a")))
    await build(templates, team, "web", request(run("a"), force=True))
    assert commands(engine) == ["a", "a"]


async def test_a_layer_that_somebody_removed_is_made_again(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    await build(templates, team, "web", request(run("a")))
    (step,) = engine.builds.steps
    assert step.result is not None
    await engine.remove_image(step.result.name)
    done = await build(templates, team, "web", request(run("a")))
    assert done.status is BuildStatus.READY
    assert commands(engine) == ["a", "a"]


async def test_a_foreign_image_gets_the_agent_first_and_once(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    await build(templates, team, "web", request(run("a"), from_image="debian:12"))
    await build(templates, team, "web2", request(run("b"), from_image="debian:12"))
    runtime, provision, first, second = engine.builds.steps
    assert runtime.image == "sha256:workspace:1"
    assert provision.image == "sha256:debian:12"
    assert runtime.result is not None
    assert provision.result is not None
    assert [tree.image for tree in provision.trees] == [runtime.result.name]
    assert provision.result.entrypoint[:1] == ("/opt/sandgate/agent/bin/python",)
    assert first.image == second.image == provision.result.name


async def test_an_alias_leads_to_another_image(templates: TemplateService, engine: InMemoryEngine, team: str) -> None:
    done = await build(templates, team, "web", request(from_image="ubuntu:22.04"))
    assert done.status is BuildStatus.READY
    assert engine.builds.steps[1].image == "sha256:foreign:1"
    assert engine.builds.logins == []


async def test_an_image_that_is_not_there_is_pulled(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    engine.builds.registry["acme/tool:2"] = {}
    done = await build(templates, team, "web", request(from_image="acme/tool:2"))
    assert done.status is BuildStatus.READY
    assert engine.builds.logins == [None]


async def test_credentials_of_a_registry_are_used_once_and_kept_nowhere(
    templates: TemplateService, engine: InMemoryEngine, team: str, tmp_path: Path
) -> None:
    engine.builds.registry["registry.corp/tool:2"] = {}
    login = RegistryLogin(username="ann", password="open-sesame-1234")
    plan = request(run("a"), from_image="registry.corp/tool:2", login=login)
    assert "open-sesame" not in repr(plan)
    done = await build(templates, team, "web", plan)
    assert done.status is BuildStatus.READY
    assert engine.builds.logins == [login]
    assert b"open-sesame-1234" not in all_bytes_in(tmp_path)


async def test_an_image_that_cannot_be_had_fails_the_base(templates: TemplateService, team: str) -> None:
    done = await build(templates, team, "web", request(run("a"), from_image="acme/absent:1"))
    assert done.failure is not None
    assert done.failure.step == "base"
    assert "acme/absent:1 cannot be pulled" in done.failure.message


async def test_a_template_may_stand_on_another(templates: TemplateService, engine: InMemoryEngine, team: str) -> None:
    first = await build(
        templates, team, "below", request(Step(kind="ENV", args=("A", "1")), run("a"), start_command="serve")
    )
    engine.builds.steps.clear()
    done = await build(templates, team, "above", request(run("b"), from_image=None, from_template="below"))
    assert engine.builds.steps[0].image == f"{NAMESPACE}/template:{first.id}"
    assert done.runs == Runs(envs={"A": "1"}, start_command="serve")


async def test_a_template_that_is_not_there_fails_the_base(templates: TemplateService, team: str) -> None:
    done = await build(templates, team, "above", request(from_image=None, from_template="absent"))
    assert done.failure is not None
    assert done.failure.step == "base"


async def test_a_template_on_the_gateways_has_a_gateway_and_its_servers(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    engine.builds.registry["acme/shot:1"] = {}
    plan = request(run("mcp-gateway pull time shot", "root"), from_image=None, from_template="mcp-gateway")
    done = await build(templates, team, "web", plan)
    assert done.status is BuildStatus.READY
    assert (await templates.resolve(team, "web")).has_gateway
    assert await engine.has_image("acme/shot:1")
    assert engine.builds.steps == []


async def test_pulling_an_unknown_server_fails_its_step(templates: TemplateService, team: str) -> None:
    done = await build(
        templates, team, "web", request(run("mcp-gateway pull tyme"), from_image=None, from_template="mcp-gateway")
    )
    assert done.failure is not None
    assert done.failure.step == "1"
    assert "tyme" in done.failure.message


async def test_copy_brings_the_uploaded_files_into_its_step(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    content = archive(readme="hello")
    files_hash = hash_of(content)
    template, _ = await templates.request_build(team, "web", cpus=None, memory_mib=None)
    present, link = await templates.upload_link(team, template.id, files_hash)
    assert not present
    await templates.receive_files(files_hash, **link, body=in_chunks(content))
    assert (await templates.upload_link(team, template.id, files_hash))[0]

    done = await build(templates, team, "web", request(Step(kind="COPY", args=("readme", "/"), files_hash=files_hash)))
    assert done.status is BuildStatus.READY
    (step,) = engine.builds.steps
    assert [upload.source.read_bytes() for upload in step.uploads] == [content]


async def test_copy_without_its_files_fails_its_step(templates: TemplateService, team: str) -> None:
    done = await build(templates, team, "web", request(Step(kind="COPY", args=("readme", "/"), files_hash="a" * 64)))
    assert done.failure is not None
    assert (done.failure.step, done.failure.message) == (
        "1",
        "failed to copy 'readme' to '/': its files were not uploaded",
    )


async def test_a_start_command_is_tried_at_the_end_and_its_files_thrown_away(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    await build(templates, team, "web", request(start_command="serve", ready_command="probe"))
    (step,) = engine.builds.steps
    assert step.result is None
    assert action(step)["start"] == "serve"
    assert action(step)["ready"] == "probe"


async def test_a_start_that_fails_fails_the_build_at_its_end(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    engine.builds.behave = playing((b"oops\nthe start command ended with exit code 127\n", 125))
    done = await build(templates, team, "web", request(start_command="serve"))
    assert done.failure is not None
    assert (done.failure.step, done.failure.message) == ("finalize", "the start command ended with exit code 127")


async def test_a_build_is_started_once(templates: TemplateService, team: str) -> None:
    done = await build(templates, team, "web", request())
    with pytest.raises(InvalidRequest, match="started before"):
        await templates.start_build(team, done.template_id, done.id, request())


async def test_a_refused_request_can_be_sent_again(templates: TemplateService, team: str) -> None:
    _, asked = await templates.request_build(team, "web", cpus=None, memory_mib=None)
    with pytest.raises(InvalidRequest):
        await templates.start_build(team, asked.template_id, asked.id, request(Step(kind="NOPE", args=())))
    await templates.start_build(team, asked.template_id, asked.id, request())
    assert (await finished(templates, team, asked)).status is BuildStatus.READY


async def test_two_builds_run_at_once_and_a_third_waits(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    at_work: set[str] = set()
    go_on = asyncio.Event()

    async def wait(step: BuildStep, on_output: OnOutput) -> int:
        at_work.add(step.build_id)
        await go_on.wait()
        return 0

    engine.builds.behave = wait
    begun = [await begin(templates, team, f"t{n}", request(run(f"c{n}"))) for n in range(3)]
    async with asyncio.timeout(BOUND_S):
        while len(at_work) < 2:
            await asyncio.sleep(0.005)
    (waiting,) = [one for one in begun if one.id not in at_work]
    found, _ = await templates.build_status(team, waiting.template_id, waiting.id)
    assert found.status is BuildStatus.WAITING
    go_on.set()
    assert {(await finished(templates, team, one)).status for one in begun} == {BuildStatus.READY}


async def test_a_build_that_takes_too_long_is_ended(
    database: Database, engine: InMemoryEngine, tmp_path: Path, clock: Clock, team: str
) -> None:
    async def hang(step: BuildStep, on_output: OnOutput) -> int:
        await asyncio.Event().wait()
        return 0

    engine.builds.behave = hang
    templates = make_template_service(database, engine, tmp_path, now=clock, timeout_s=0.05)
    async with building(templates):
        done = await build(templates, team, "web", request(run("sleep")))
        assert done.failure is not None
        assert "longer than 0.05 s" in done.failure.message
        assert engine.builds.is_idle


async def test_a_build_cut_off_by_the_end_of_the_control_plane_is_failed_by_the_next(
    database: Database, engine: InMemoryEngine, tmp_path: Path, clock: Clock, team: str
) -> None:
    engine.builds.behave = hanging = HangingStep()
    first = make_template_service(database, engine, tmp_path, now=clock)
    async with building(first):
        cut_off = await begin(first, team, "web", request(run("sleep")))
        _, only_asked_for = await first.request_build(team, "later", cpus=None, memory_mib=None)
        await hanging.reached.wait()
    assert engine.builds.is_idle

    second = make_template_service(database, engine, tmp_path, now=clock)
    async with building(second):
        found, _ = await second.build_status(team, cut_off.template_id, cut_off.id)
        assert found.status is BuildStatus.ERROR
        assert found.failure is not None
        assert "control plane was stopped" in found.failure.message
        # One whose steps were not sent yet goes on.
        still, _ = await second.build_status(team, only_asked_for.template_id, only_asked_for.id)
        assert still.status is BuildStatus.WAITING


async def test_an_engine_that_goes_away_fails_the_build_with_the_reason(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    async def vanish(step: BuildStep, on_output: OnOutput) -> int:
        engine.is_away = True
        return 0

    engine.builds.behave = vanish
    done = await build(templates, team, "web", request(run("a"), run("b")))
    assert done.failure is not None
    assert "does not answer" in done.failure.message


async def test_a_full_disk_while_uploading_keeps_nothing(templates: TemplateService, team: str, tmp_path: Path) -> None:
    template, _ = await templates.request_build(team, "web", cpus=None, memory_mib=None)
    _, link = await templates.upload_link(team, template.id, "a" * 64)

    async def cut_short() -> AsyncIterator[bytes]:
        yield archive(a="b")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutOfSpace, match="No space left"):
        await templates.receive_files("a" * 64, **link, body=cut_short())
    assert all_bytes_in(tmp_path / "template-files") == b""


async def test_what_was_fetched_with_credentials_is_for_nobody_else(
    templates: TemplateService, engine: InMemoryEngine, team: str, other_team: str
) -> None:
    engine.builds.registry["registry.corp/tool:2"] = {}
    login = RegistryLogin(username="ann", password="open-sesame-1234")
    first = await build(templates, team, "web", request(from_image="registry.corp/tool:2", login=login))
    assert first.status is BuildStatus.READY
    assert not await engine.has_image("registry.corp/tool:2")
    engine.builds.registry.clear()
    theirs = await build(templates, other_team, "web", request(from_image="registry.corp/tool:2"))
    assert theirs.status is BuildStatus.ERROR


async def test_a_forced_build_fetches_what_is_new_and_does_with_what_is_here(
    templates: TemplateService, engine: InMemoryEngine, team: str
) -> None:
    done = await build(templates, team, "web", request(from_image="debian:12", force=True))
    assert done.status is BuildStatus.READY
    assert engine.builds.logins == [None]
    assert any("Using the one that is here" in line.message for line in await log_of(templates, team, done))
    await build(templates, team, "web", request(from_image="ubuntu:22.04", force=True))
    assert engine.builds.logins == [None]


async def test_a_build_that_ends_while_images_are_cleared_up_keeps_its_image(
    templates: TemplateService, engine: InMemoryEngine, clock: Clock, team: str
) -> None:
    clock.advance(days=1)  # later than all images of the engine were made

    async def clear_up() -> None:
        while True:
            templates.builder.sweep_soon()
            await asyncio.sleep(0)

    clearing = asyncio.create_task(clear_up())
    try:
        for number in range(20):
            # Without steps its image is an older one under a new name.
            built = await build(templates, team, f"web-{number}", request())
            assert built.image is not None
            assert await engine.has_image(built.image)
    finally:
        clearing.cancel()
