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
from tests.engine.subjects import DockerSubject, InMemorySubject, Subject, until

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


async def has_ended(subject: Subject, spec: JobSpec) -> bool:
    if isinstance(subject, DockerSubject):
        found = await asyncio.to_thread(subject.api.inspect_container, f"sandgate-job-{spec.name}")
        return bool(found["State"]["Status"] == "exited")
    return all(task.get_name() != f"job {spec.name}" for task in asyncio.all_tasks())


@pytest.mark.parametrize(("ending", "runs"), [("exit 3", 1), ("exit 0", 2)])
async def test_only_how_a_job_failed_waits_for_who_comes_back_and_is_told_once(
    subject: Subject, ending: str, runs: int
) -> None:
    name = f"test-back-{uuid.uuid4().hex[:8]}"
    spec = job(subject.image, f"echo run >> /data/{name}; echo working; sleep 1; {ending} # wait", name=name)
    code = int(ending.removeprefix("exit "))
    began = asyncio.Event()
    first = asyncio.create_task(subject.engine.jobs.run(spec, lambda line: began.set()))
    await began.wait()
    first.cancel()
    await asyncio.wait([first])
    await until(lambda: has_ended(subject, spec))

    for expected in (runs, runs + 1):
        assert (await subject.engine.jobs.run(spec, lambda line: None)).exit_code == code
        if isinstance(subject, InMemorySubject):
            assert subject.engine.jobs.started == [spec] * expected
        else:
            assert (await subject.engine.jobs.read_shared(VOLUME, "."))[name] == b"run\n" * expected


async def test_a_job_without_its_image_says_so(subject: Subject) -> None:
    with pytest.raises(ImageMissing):
        await subject.engine.jobs.run(job("sandgate-test/absent:1", "true"), lambda line: None)
