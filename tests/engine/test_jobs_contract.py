"""What every engine promises about jobs, on memory and on Docker."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import docker
import pytest

from app.engines.in_memory_jobs import InMemoryJobs
from app.engines.interface import Limits
from app.engines.jobs import JobOutcome, JobSpec, Report
from app.errors import ImageMissing
from tests.engine.subjects import InMemorySubject, Subject

pytestmark = pytest.mark.asyncio(loop_scope="session")

VOLUME = f"job-tests-{uuid.uuid4().hex[:8]}"
_TURNS = 50
"""Of the event loop: more than a caller takes to join a job, and unlike a time none that a slow machine cuts short."""
LIMITS = Limits(memory_mib=128, cpus=1, pids=64)


@pytest.fixture(scope="module", autouse=True)
def volume_removed() -> Iterator[None]:
    yield
    client = docker.from_env()
    for volume in client.volumes.list(filters={"name": f"sandgate-{VOLUME}"}):
        volume.remove()
    client.close()


def job(image: str, script: str, *, name: str | None = None, timeout_s: int = 30) -> JobSpec:
    return JobSpec(
        name=name or f"test-{uuid.uuid4().hex[:8]}",
        image=image,
        command=("sh", "-c", script),
        limits=LIMITS,
        timeout_s=timeout_s,
        shared={VOLUME: "/data"},
    )


async def as_script(spec: JobSpec, report: Report, jobs: InMemoryJobs) -> JobOutcome:
    """What the scripts of these tests do, without a shell."""
    script = spec.command[-1]
    report("working")
    if "wait" in script:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
    if "keep" in script:
        jobs.shared.setdefault(VOLUME, {})["kept/deep/note"] = b"hello"
    code = 3 if "exit 3" in script else 0
    return JobOutcome(exit_code=code, output="working\n")


@pytest.fixture
def subject(request: pytest.FixtureRequest, subject: Subject) -> Subject:
    if isinstance(subject, InMemorySubject):
        jobs = subject.engine.jobs
        jobs.program = lambda spec, report: as_script(spec, report, jobs)
    return subject


@pytest.mark.parametrize(("script", "code"), [("echo working", 0), ("echo working; exit 3", 3)])
async def test_a_job_ends_with_its_exit_code_and_last_lines(subject: Subject, script: str, code: int) -> None:
    lines: list[str] = []
    outcome = await subject.engine.jobs.run(job(subject.image, script), lines.append)
    assert (outcome, lines) == (JobOutcome(exit_code=code, output="working\n"), ["working"])


async def test_what_a_job_wrote_to_a_shared_volume_is_read_back_by_path(subject: Subject) -> None:
    jobs = subject.engine.jobs
    assert await jobs.read_shared(VOLUME, "kept") == {}
    script = "echo working; mkdir -p /data/kept/deep; printf hello > /data/kept/deep/note # keep"
    await jobs.run(job(subject.image, script), lambda line: None)
    assert await jobs.read_shared(VOLUME, "kept") == {"deep/note": b"hello"}


async def test_two_who_want_the_same_job_at_once_share_one_run(subject: Subject) -> None:
    outcomes: list[JobOutcome] = []
    spec = job(subject.image, "echo run >> /data/runs; sleep 3 # wait", name=f"test-once-{uuid.uuid4().hex[:8]}")

    async def want() -> None:
        outcomes.append(await subject.engine.jobs.run(spec, lambda line: None))

    async with asyncio.TaskGroup() as group:
        group.create_task(want())
        group.create_task(want())
    assert {outcome.exit_code for outcome in outcomes} <= {0, None}
    assert any(outcome.exit_code == 0 for outcome in outcomes)
    if isinstance(subject, InMemorySubject):
        assert subject.engine.jobs.started == [spec]
    else:
        runs = await subject.engine.jobs.read_shared(VOLUME, ".")
        assert runs["runs"] == b"run\n"


async def test_a_job_goes_on_without_the_caller_that_was_cancelled(subject: Subject) -> None:
    spec = job(
        subject.image, "echo working; sleep 1; mkdir -p /data/kept/deep; touch /data/kept/deep/after # wait keep"
    )
    began = asyncio.Event()
    first = asyncio.create_task(subject.engine.jobs.run(spec, lambda line: began.set()))
    await began.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    outcome = await subject.engine.jobs.run(spec, lambda line: None)
    assert outcome.exit_code == 0
    if isinstance(subject, InMemorySubject):
        assert subject.engine.jobs.started == [spec]


async def test_a_job_without_its_image_says_so(subject: Subject) -> None:
    with pytest.raises(ImageMissing):
        await subject.engine.jobs.run(job("sandgate-test/absent:1", "true"), lambda line: None)
