"""Runs beside pods on Docker: what confines them, what ends them, and what is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from app.engines.docker_client import DockerClient
from app.engines.docker_engine import DockerEngine
from app.engines.docker_runs import DockerRuns
from app.engines.interface import Limits, VolumeMount
from app.engines.runs import MIB, RunOutcome, RunSpec
from app.errors import EngineError
from tests.engine.conftest import INSTALLATION
from tests.engine.subjects import DockerSubject, container, pod, until
from tests.engine_door import CuttingDoor

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="session")]

POD = "pod-runs"
SERVE = "python3 -m http.server --bind 127.0.0.1 8123"
FETCH = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8123/note', timeout=5).read())"


@pytest_asyncio.fixture(loop_scope="session", autouse=True)
async def pod_with_a_service(docker_subject: DockerSubject) -> AsyncIterator[None]:
    service = container(docker_subject.image, command=("sh", "-c", f"cd /tmp && echo hi > note && exec {SERVE}"))
    await docker_subject.engine.start(pod(POD, service))

    async def is_served() -> bool:
        return (await docker_subject.run(POD, "only", ["python3", "-c", FETCH]))[0] == 0

    await until(is_served)
    yield
    await docker_subject.engine.stop(POD)
    await until_none_is_left(docker_subject)


async def run(subject: DockerSubject, *command: str, **more: object) -> RunOutcome:
    return await subject.engine.run(POD, spec(subject, *command, **more))


def spec(subject: DockerSubject, *command: str, **more: object) -> RunSpec:
    limits = Limits(memory_mib=48, cpus=1, pids=16)
    fields = {"image": subject.image, "command": command, "limits": limits, "timeout_s": 30.0, **more}
    return RunSpec(**fields)  # type: ignore[arg-type]


async def left(subject: DockerSubject) -> list[str]:
    filters = {"label": ["sandgate.run", f"sandgate.installation={INSTALLATION}"]}
    listed = await asyncio.to_thread(subject.api.containers, all=True, filters=filters)
    return [item["Names"][0] for item in listed]


async def until_none_is_left(subject: DockerSubject) -> None:
    """What was cancelled is still being removed by a thread."""

    async def is_so() -> bool:
        return await left(subject) == []

    await until(is_so)


async def test_a_run_has_no_capability_no_way_to_more_and_its_limits(docker_subject: DockerSubject) -> None:
    facts = (
        "grep -hE 'CapEff|CapBnd|NoNewPrivs' /proc/self/status | cut -f2;"
        " cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null;"
        " cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null"
    )
    outcome = await run(docker_subject, "sh", "-c", facts)
    assert outcome.stdout.content.split() == [b"0" * 16, b"0" * 16, b"1", b"16", str(48 * MIB).encode()]


async def test_localhost_is_the_pods_unless_the_run_has_no_network(docker_subject: DockerSubject) -> None:
    assert b"hi" in (await run(docker_subject, "python3", "-c", FETCH)).stdout.content
    alone = await run(docker_subject, "python3", "-c", FETCH, has_network=False)
    assert alone.exit_code == 1
    assert b"refused" in alone.stderr.content
    interfaces = "import socket; print([name for _, name in socket.if_nameindex()])"
    lonely = await run(docker_subject, "python3", "-c", interfaces, has_network=False)
    assert lonely.stdout.content == b"['lo']\n"


async def test_an_argument_stays_one_and_no_shell_reads_it(docker_subject: DockerSubject) -> None:
    arguments = ("$(id)", "a b", "", "--rm", "; exit 1", "`id`", "\u00e9\n")
    outcome = await run(docker_subject, "python3", "-c", "import sys; print(sys.argv[1:])", *arguments)
    assert outcome.stdout.content.decode() == f"{list(arguments)}\n"


async def test_a_flood_is_ended_and_its_beginning_is_kept(docker_subject: DockerSubject) -> None:
    outcome = await run(docker_subject, "sh", "-c", "yes; echo never", stdout_limit=MIB)
    assert (outcome.ended_by, outcome.stdout.content, outcome.stdout.is_cut) == ("output", b"y\n" * (MIB // 2), True)


async def test_output_that_is_no_text_arrives_byte_for_byte(docker_subject: DockerSubject) -> None:
    program = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 4)"
    assert (await run(docker_subject, "python3", "-c", program)).stdout.content == bytes(range(256)) * 4


async def test_a_run_that_needs_too_much_memory_is_told_apart(docker_subject: DockerSubject) -> None:
    outcome = await run(docker_subject, "python3", "-c", "x = bytearray(256 << 20); x[:] = b'1' * len(x)")
    assert (outcome.exit_code, outcome.ended_by) == (137, "memory")
    by_hand = await run(docker_subject, "sh", "-c", "exit 137")
    assert (by_hand.exit_code, by_hand.ended_by) == (137, "itself")


async def test_what_cannot_be_started_is_told_with_the_reason(docker_subject: DockerSubject) -> None:
    absent = await run(docker_subject, "/no-such-program")
    assert absent.exit_code == 127
    assert b"/no-such-program failed: No such file or directory" in absent.stderr.content
    with pytest.raises(EngineError, match="no-such-user"):
        await run(docker_subject, "true", user="no-such-user")
    with pytest.raises(EngineError, match="Volume absent is not on the engine"):
        await run(docker_subject, "true", mounts=(VolumeMount(volume="absent", path="/data"),))
    assert await left(docker_subject) == []


async def test_nothing_is_left_of_a_run_however_early_it_is_cancelled(docker_subject: DockerSubject) -> None:
    for turns in range(12):
        running = asyncio.create_task(run(docker_subject, "sleep", "60"))
        await asyncio.sleep(turns * 0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    await until_none_is_left(docker_subject)


async def test_a_run_is_ended_at_its_time_out_although_a_connection_is_cut(
    docker_subject: DockerSubject, base_image: str, tmp_path: Path
) -> None:
    door = CuttingDoor(tmp_path / "engine.sock", b"/kill")
    await door.open()
    engine = DockerEngine(INSTALLATION, guard_image=base_image, base_url=door.url)
    try:
        # The clock starts before the container is made, and one that has not started cannot be killed.
        outcome = await engine.run(POD, spec(docker_subject, "sleep", "60", timeout_s=10.0))
        assert (outcome.exit_code, outcome.ended_by) == (137, "time-out")
        assert door.cuts == 1
    finally:
        await engine.aclose()
        await door.shut()


async def test_a_run_that_finds_no_place_says_so_at_its_time_out(docker_subject: DockerSubject) -> None:
    client = DockerClient(base_url=None, max_workers=2, timeout_s=45)
    runs = DockerRuns(client, base_url=None, timeout_s=45, installation=INSTALLATION, runtime=None, at_once=1)
    first = asyncio.create_task(runs.run(POD, spec(docker_subject, "sleep", "60")))

    async def is_under_way() -> bool:
        return len(await left(docker_subject)) == 1

    await until(is_under_way)
    with pytest.raises(
        EngineError, match=r"1 programs run beside sandboxes, as many as may, and none ended within 0.1 s"
    ):
        await runs.run(POD, spec(docker_subject, "true", timeout_s=0.1))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    outcome = await runs.run(POD, spec(docker_subject, "true"))
    assert outcome.exit_code == 0
    await runs.aclose()
    await client.aclose()


async def test_the_next_process_removes_what_a_killed_one_left_and_nothing_of_its_own(
    docker_subject: DockerSubject, base_image: str
) -> None:
    labels = {"sandgate.installation": INSTALLATION, "sandgate.run": POD}
    create = docker_subject.api.create_container
    await asyncio.to_thread(create, base_image, command=["sleep", "60"], labels=labels, name="sandgate-left-run-1")
    running = asyncio.create_task(run(docker_subject, "sleep", "60"))

    async def both_are_there() -> bool:
        return len(await left(docker_subject)) == 2

    await until(both_are_there)
    await docker_subject.engine.prepare()  # as every few minutes
    assert len(await left(docker_subject)) == 2
    await docker_subject.engine.remove_lost()
    (own,) = await left(docker_subject)
    assert own.startswith(f"/sandgate-{POD}-run-")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
