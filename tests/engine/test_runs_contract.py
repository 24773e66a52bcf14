"""What every engine promises about programs that run once beside a pod, on memory and on Docker."""

from __future__ import annotations

import asyncio

import pytest

from app.engines.interface import Limits, VolumeMount
from app.engines.runs import Output, OutputKeeper, RunOutcome, RunSpec
from app.errors import EngineError, ImageMissing, PodGone
from tests.engine.subjects import DockerSubject, InMemorySubject, Subject, container, pod, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIMITS = Limits(memory_mib=64, cpus=1, pids=32)


def script(image: str, text: str, **more: object) -> RunSpec:
    fields = {"image": image, "command": ("sh", "-c", text), "limits": LIMITS, "timeout_s": 30.0, **more}
    return RunSpec(**fields)  # type: ignore[arg-type]


async def as_script(spec: RunSpec, output: OutputKeeper) -> int:
    """What the scripts of these tests do, without a shell."""
    text = (spec.command or ())[-1]
    if "hello" in text:
        output.take(stdout=b"hello")
    if "oh" in text:
        output.take(stderr=b"oh")
    if "sleep" in text:
        await asyncio.sleep(60)
    return 3 if "exit 3" in text else 0


async def is_under_way(subject: Subject) -> bool:
    if isinstance(subject, InMemorySubject):
        return bool(subject.engine.runs.running)
    assert isinstance(subject, DockerSubject)
    filters = {"label": "sandgate.run=pod-runs", "status": "running"}
    return bool(await asyncio.to_thread(subject.api.containers, filters=filters))


@pytest.fixture
async def subject(subject: Subject) -> Subject:
    if isinstance(subject, InMemorySubject):
        subject.engine.runs.program = as_script
    await subject.engine.start(pod("pod-runs", container(subject.image)))
    return subject


async def test_a_run_gives_what_it_wrote_on_either_stream_and_its_exit_code(subject: Subject) -> None:
    outcome = await subject.engine.run("pod-runs", script(subject.image, "printf hello; printf oh >&2; exit 3"))
    assert outcome == RunOutcome(exit_code=3, stdout=Output(content=b"hello"), stderr=Output(content=b"oh"))


async def test_a_run_keeps_the_beginning_of_what_it_wrote_and_says_that_there_was_more(subject: Subject) -> None:
    outcome = await subject.engine.run("pod-runs", script(subject.image, "printf hello", stdout_limit=4))
    assert outcome.stdout == Output(content=b"hell", is_cut=True)


async def test_a_run_is_ended_at_its_time_out_and_what_it_wrote_is_kept(subject: Subject) -> None:
    timeout_s = 10.0 if isinstance(subject, DockerSubject) else 0.2  # it counts from before the container is made
    spec = script(subject.image, "printf hello; sleep 60", timeout_s=timeout_s)
    outcome = await subject.engine.run("pod-runs", spec)
    assert (outcome.exit_code, outcome.ended_by, outcome.stdout.content) == (137, "time-out", b"hello")


async def test_a_run_without_its_image_says_so(subject: Subject) -> None:
    with pytest.raises(ImageMissing):
        await subject.engine.run("pod-runs", script("sandgate-test/absent:1", "true"))


async def test_a_run_beside_a_pod_that_is_gone_or_halted_is_refused(subject: Subject) -> None:
    with pytest.raises(PodGone):
        await subject.engine.run("pod-unknown", script(subject.image, "true"))
    await subject.engine.halt("pod-runs")
    with pytest.raises(PodGone):
        await subject.engine.run("pod-runs", script(subject.image, "true"))


@pytest.mark.parametrize("end", ["stop", "pause", "halt"])
async def test_a_run_fails_when_its_pod_is_stopped_paused_or_halted(subject: Subject, end: str) -> None:
    running = asyncio.create_task(subject.engine.run("pod-runs", script(subject.image, "printf hello; sleep 60")))
    await until(lambda: is_under_way(subject))
    await getattr(subject.engine, end)("pod-runs")
    with pytest.raises(EngineError, match="ended with what it ran for"):
        await running


async def test_runs_beside_one_pod_do_not_wait_for_each_other_and_are_no_part_of_it(subject: Subject) -> None:
    slow = asyncio.create_task(subject.engine.run("pod-runs", script(subject.image, "sleep 60")))
    await subject.engine.run("pod-runs", script(subject.image, "printf hello"))
    assert not slow.done()
    assert [status.role for status in (await subject.engine.observe())["pod-runs"].containers] == ["only"]
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow


async def test_a_run_sees_the_volumes_it_is_given(subject: Subject) -> None:
    await subject.engine.create_volume("runs")
    mounts = (VolumeMount(volume="runs", path="/data"),)
    await subject.engine.run("pod-runs", script(subject.image, "printf hello > /data/note", mounts=mounts))
    outcome = await subject.engine.run("pod-runs", script(subject.image, "cat /data/note # hello", mounts=mounts))
    assert outcome.stdout.content == b"hello"
    assert await subject.engine.remove_volume("runs")
