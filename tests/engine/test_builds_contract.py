"""What every engine promises of build steps (`app.engines.builds`), tested on each of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import docker
import pytest
import pytest_asyncio

from app.engines.builds import Builds, BuildStep, ImagePullError, OnOutput, Result, Tree, Upload
from app.engines.docker_engine import DockerEngine
from app.engines.in_memory_engine import InMemoryEngine
from app.engines.interface import Engine, File, Limits
from app.errors import ImageMissing
from tests.e2e.installation import wait_until
from tests.engine.conftest import INSTALLATION, Listener
from tests.engine.subjects import container, pod
from tests.engine_door import CuttingDoor, Door
from tests.waiting import BOUND_S

pytestmark = pytest.mark.asyncio(loop_scope="session")

REPOSITORY = f"sandgate-tests-{os.getpid()}/layer"
ENTRYPOINT = ("/bin/sleep", "600")
SMALL = Limits(memory_mib=256, cpus=1, pids=64)


@dataclass
class Subject:
    engine: Engine
    image: str

    @property
    def builds(self) -> Builds:
        return self.engine.builds


@pytest.fixture
def in_memory_builds() -> Subject:
    """Its steps know three shell lines."""
    engine = InMemoryEngine({"image:1": {}})

    async def behave(step: BuildStep, on_output: OnOutput) -> int:
        line = step.command[-1]
        if line.startswith("echo "):
            on_output(line.removeprefix("echo ").encode() + b"\n")
        elif line.startswith("sleep "):
            await asyncio.Event().wait()
        return int(line.removeprefix("exit ")) if line.startswith("exit ") else 0

    engine.builds.behave = behave
    return Subject(engine, "image:1")


@pytest_asyncio.fixture(loop_scope="session")
async def docker_builds(
    prepared_engine: DockerEngine, base_image: str, docker_api: docker.APIClient
) -> AsyncIterator[Subject]:
    yield Subject(prepared_engine, base_image)
    for image in await prepared_engine.builds.images(REPOSITORY):
        assert await prepared_engine.remove_image(image.name)
    # A step that was cut off is removed by the thread that made it.
    await asyncio.to_thread(wait_until, lambda: not step_containers(docker_api), lambda: step_containers(docker_api))


@pytest.fixture(params=["in_memory", pytest.param("docker", marks=pytest.mark.docker)])
def subject(request: pytest.FixtureRequest) -> Subject:
    chosen: Subject = request.getfixturevalue(f"{request.param}_builds")
    return chosen


def step_containers(api: docker.APIClient) -> list[str]:
    prefix = f"/sandgate-build-tests-{os.getpid()}-"
    names = [name for item in api.containers(all=True) for name in item["Names"]]
    return [name for name in names if name.startswith(prefix)]


def shell(image: str, line: str, **more: object) -> BuildStep:
    step = {"build_id": "b1", "image": image, "command": ("/bin/sh", "-c", line), "limits": SMALL, **more}
    return BuildStep(**step)  # type: ignore[arg-type]


def layer() -> Result:
    return Result(name=f"{REPOSITORY}:{uuid4().hex}", entrypoint=ENTRYPOINT)


async def output_of(subject: Subject, step: BuildStep) -> str:
    """What a step prints, which has to succeed."""
    printed: list[bytes] = []
    code = await subject.builds.run(step, printed.append)
    assert code == 0, b"".join(printed).decode()
    return b"".join(printed).decode()


def ignore(chunk: bytes) -> None:
    return


async def test_a_step_prints_and_makes_an_image(subject: Subject) -> None:
    result = layer()
    assert await output_of(subject, shell(subject.image, "echo hello", result=result)) == "hello\n"
    assert await subject.builds.find_image(result.name) is not None
    assert [image.name for image in await subject.builds.images(REPOSITORY)] == [result.name]
    assert await subject.engine.remove_image(result.name)


async def test_a_step_that_fails_makes_none(subject: Subject) -> None:
    result = layer()
    assert await subject.builds.run(shell(subject.image, "exit 7", result=result), ignore) == 7
    assert await subject.builds.find_image(result.name) is None


async def test_a_cancelled_step_makes_none_and_leaves_nothing(subject: Subject) -> None:
    result = layer()
    step = asyncio.create_task(subject.builds.run(shell(subject.image, "sleep 600", result=result), ignore))
    await asyncio.sleep(0)
    for _ in range(3):
        step.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await step
    assert await subject.builds.find_image(result.name) is None


async def test_a_missing_image_is_told_apart(subject: Subject) -> None:
    with pytest.raises(ImageMissing):
        await subject.builds.run(shell("sandgate-tests/absent:1", "exit 0"), ignore)
    assert await subject.builds.find_image("sandgate-tests/absent:1") is None
    with pytest.raises(ImageMissing):
        await subject.builds.name_image("sandgate-tests/absent:1", f"{REPOSITORY}:x")


async def test_an_image_that_no_registry_gives_is_told_with_the_reason(subject: Subject) -> None:
    with pytest.raises(ImagePullError, match="registry.invalid/absent:1 cannot be pulled"):
        await subject.builds.pull("registry.invalid/absent:1")


async def test_an_image_may_have_several_names(subject: Subject) -> None:
    one, other = f"{REPOSITORY}:{uuid4().hex}", f"{REPOSITORY}:{uuid4().hex}"
    await subject.builds.name_image(subject.image, one)
    await subject.builds.name_image(one, other)
    assert await subject.engine.remove_image(one)
    assert await subject.builds.find_image(other) is not None
    assert await subject.engine.remove_image(other)


async def test_removing_containers_where_there_are_none_is_silent(subject: Subject) -> None:
    await subject.builds.remove_containers()


# -- on Docker alone ---------------------------------------------------------------------------------------------------


@pytest.mark.docker
async def test_an_image_is_found_by_its_name_and_not_by_a_part_of_its_id(docker_builds: Subject) -> None:
    facts = await docker_builds.builds.find_image(docker_builds.image)
    assert facts is not None
    assert facts.env["LANG"] == "C.UTF-8"
    assert facts.labels["sandgate.image"] == "base"
    assert await docker_builds.builds.find_image(facts.image_id.removeprefix("sha256:")[:12]) is None


@pytest.mark.docker
async def test_files_and_uploads_are_there_and_steps_build_on_each_other(
    docker_builds: Subject, tmp_path: Path
) -> None:
    big = tmp_path / "big"
    big.write_bytes(os.urandom(3 * 1024 * 1024 + 17))
    first, second = layer(), layer()
    await output_of(
        docker_builds,
        shell(
            docker_builds.image,
            "stat -c '%a %u %s' /in/small /in/big && cp /in/big /kept && rm -r /in",
            files=(File(path="/in/small", content=b"hi", mode=0o444),),
            uploads=(Upload(source=big, path="/in/big"),),
            result=first,
        ),
    )
    printed = await output_of(docker_builds, shell(first.name, "stat -c %s /kept; test ! -e /in", result=second))
    assert printed.strip() == str(3 * 1024 * 1024 + 17)


@pytest.mark.docker
async def test_a_tree_of_another_image_is_copied_with_its_owners_and_links(docker_builds: Subject) -> None:
    source = layer()
    make = "mkdir -p /tree/a/b && echo x > /tree/a/b/f && chown 1000:1000 /tree/a/b/f && ln -s f /tree/a/b/l"
    await output_of(docker_builds, shell(docker_builds.image, make, capabilities=("CHOWN",), result=source))
    printed = await output_of(
        docker_builds,
        shell(
            docker_builds.image,
            "cat /srv/a/b/l; stat -c %u /srv/a/b/f",
            trees=(Tree(image=source.name, path="/tree/a", into="/srv"),),
        ),
    )
    assert printed.split() == ["x", "1000"]


@pytest.mark.docker
async def test_an_image_runs_its_own_program_as_root_and_nothing_of_the_step(
    docker_builds: Subject, docker_api: docker.APIClient
) -> None:
    result = Result(name=f"{REPOSITORY}:{uuid4().hex}", entrypoint=ENTRYPOINT, env={"A": 'x "y" $z\\'})
    await output_of(docker_builds, shell(docker_builds.image, "echo secret-word", result=result))
    config = (await asyncio.to_thread(lambda: docker_api.inspect_image(result.name)))["Config"]  # type: ignore[no-untyped-call]
    assert (config["Entrypoint"], config["Cmd"] or []) == (list(ENTRYPOINT), [])
    assert (config["User"], config["WorkingDir"]) == ("0", "/")
    assert 'A=x "y" $z\\' in config["Env"]
    facts = await docker_builds.builds.find_image(result.name)
    assert facts is not None
    assert facts.env["A"] == 'x "y" $z\\'


@pytest.mark.docker
async def test_an_image_whose_name_another_took_is_removed_once_nothing_needs_it(
    docker_builds: Subject, docker_api: docker.APIClient
) -> None:
    def ids() -> set[str]:
        return set(docker_api.images(quiet=True, all=True))

    builds, result, above = docker_builds.builds, layer(), layer()
    of_somebody = await asyncio.to_thread(make_unnamed, docker_api, docker_builds.image)
    await output_of(docker_builds, shell(docker_builds.image, "exit 0", result=result))
    first = await builds.find_image(result.name)
    assert first is not None
    await output_of(docker_builds, shell(docker_builds.image, "exit 0", result=result))
    await builds.remove_unnamed_images(older_than_s=60)
    assert first.image_id in await asyncio.to_thread(ids)

    user = await asyncio.to_thread(lambda: docker_api.create_container(first.image_id, command="true"))
    await builds.remove_unnamed_images(older_than_s=0)
    assert first.image_id in await asyncio.to_thread(ids)

    await asyncio.to_thread(docker_api.remove_container, user["Id"])
    await output_of(docker_builds, shell(first.image_id, "exit 0", result=above))
    await builds.remove_unnamed_images(older_than_s=0)
    assert first.image_id in await asyncio.to_thread(ids)

    assert await docker_builds.engine.remove_image(above.name)
    await builds.remove_unnamed_images(older_than_s=0)
    left = await asyncio.to_thread(ids)
    assert first.image_id not in left
    assert of_somebody in left
    assert await builds.find_image(result.name) is not None
    assert await docker_builds.engine.remove_image(of_somebody)


def make_unnamed(api: docker.APIClient, image: str) -> str:
    """One that another program made."""
    made = api.create_container(image, command="true")["Id"]
    image_id: str = api.commit(made)["Id"]
    api.remove_container(made)
    return image_id


@pytest.mark.docker
async def test_a_step_on_a_pods_snapshot_is_not_taken_for_that_pod(
    docker_builds: Subject, docker_api: docker.APIClient
) -> None:
    snapshot = f"{REPOSITORY}:{uuid4().hex}"
    await docker_builds.engine.start(pod("snapped", container(docker_builds.image)))
    await docker_builds.engine.snapshot("snapped", "only", snapshot)
    await docker_builds.engine.stop("snapped")

    step = asyncio.create_task(docker_builds.builds.run(shell(snapshot, "sleep 600"), ignore))
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(step_containers, docker_api):
            await asyncio.sleep(0.05)
    assert await docker_builds.engine.observe() == {}
    # As the next control plane does for one that was killed.
    successor = DockerEngine(INSTALLATION, guard_image=docker_builds.image)
    try:
        await successor.builds.remove_containers()
    finally:
        await successor.aclose()
    await asyncio.wait([step], timeout=30)
    assert step.done()
    assert step.exception() is not None or step.result() != 0
    assert await docker_builds.engine.remove_image(snapshot)


@asynccontextmanager
async def engine_behind(door: Door, image: str) -> AsyncIterator[DockerEngine]:
    await door.open()
    engine = DockerEngine(INSTALLATION, guard_image=image, base_url=door.url)
    try:
        await engine.prepare()
        yield engine
    finally:
        await engine.aclose()
        await door.shut()


class LateDoor(Door):
    """Once told to hold, lets a container be made when its removal was answered, and tells that when it is made."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.holds = False
        self.making_was_asked = asyncio.Event()
        self._was_removed = asyncio.Event()
        self._was_made = asyncio.Event()

    async def _let_through(self, sent: bytes) -> None:
        if self.holds and b"/containers/create" in sent.partition(b"\r\n")[0]:
            self.making_was_asked.set()
            await self._was_removed.wait()

    async def _let_back(self, answered: bytes) -> None:
        if self.holds and answered.startswith(b"HTTP/1.1 404"):
            self._was_removed.set()
            await self._was_made.wait()
            await asyncio.sleep(0.2)  # for the thread that made it
        elif answered.startswith(b"HTTP/1.1 201"):
            self._was_made.set()


@pytest.mark.docker
async def test_a_container_made_while_its_removal_is_answered_is_removed(
    docker_builds: Subject, docker_api: docker.APIClient, tmp_path: Path
) -> None:
    door = LateDoor(tmp_path / "engine.sock")
    async with engine_behind(door, docker_builds.image) as engine:
        door.holds = True
        step = asyncio.create_task(engine.builds.run(shell(docker_builds.image, "sleep 600"), ignore))
        async with asyncio.timeout(BOUND_S):
            await door.making_was_asked.wait()
            step.cancel()
            await asyncio.wait([step])
        assert await asyncio.to_thread(step_containers, docker_api) == []


@pytest.mark.docker
async def test_what_an_earlier_process_left_is_removed_while_steps_go_on(
    docker_builds: Subject, docker_api: docker.APIClient
) -> None:
    began = asyncio.Event()
    step = asyncio.create_task(
        docker_builds.builds.run(shell(docker_builds.image, "echo begun; sleep 600"), lambda chunk: began.set())
    )
    async with asyncio.timeout(BOUND_S):
        await began.wait()
    (own,) = await asyncio.to_thread(step_containers, docker_api)
    copied_from, lost = f"{own}-tree", f"/sandgate-build-{INSTALLATION}-b0-0123456789ab"
    for name in (copied_from, lost, f"{lost}-tree"):
        await asyncio.to_thread(docker_api.create_container, docker_builds.image, ["true"], name=name)
    await docker_builds.builds.remove_containers()
    assert set(await asyncio.to_thread(step_containers, docker_api)) == {own, copied_from}
    step.cancel()
    await asyncio.wait([step])
    await docker_builds.builds.remove_containers()
    assert await asyncio.to_thread(step_containers, docker_api) == []


@pytest.mark.docker
async def test_a_cancelled_step_is_removed_although_a_connection_is_cut(
    docker_builds: Subject, docker_api: docker.APIClient, tmp_path: Path
) -> None:
    door = CuttingDoor(tmp_path / "engine.sock", rb"^DELETE \S+/containers/sandgate-build-")
    began = asyncio.Event()
    async with engine_behind(door, docker_builds.image) as engine:
        step = asyncio.create_task(
            engine.builds.run(shell(docker_builds.image, "echo begun; sleep 600"), lambda chunk: began.set())
        )
        async with asyncio.timeout(BOUND_S):
            await began.wait()
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
    assert door.cuts == 1
    assert await asyncio.to_thread(step_containers, docker_api) == []


@pytest.mark.docker
async def test_a_step_ends_as_it_did_although_its_container_cannot_be_removed(
    docker_builds: Subject, docker_api: docker.APIClient, tmp_path: Path
) -> None:
    door = CuttingDoor(tmp_path / "engine.sock", rb"^DELETE \S+/containers/sandgate-build-", times=2)
    async with engine_behind(door, docker_builds.image) as engine:
        assert await engine.builds.run(shell(docker_builds.image, "exit 7"), ignore) == 7
        assert len(await asyncio.to_thread(step_containers, docker_api)) == 1
        await engine.builds.remove_containers()
        assert await asyncio.to_thread(step_containers, docker_api) == []


@pytest.mark.docker
async def test_a_step_is_confined_like_a_pod(
    docker_builds: Subject, host_address: str, other_listener: Listener
) -> None:
    status = await output_of(docker_builds, shell(docker_builds.image, "cat /proc/self/status"))
    assert "CapEff:\t0000000000000000" in status
    memory = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
    assert int(await output_of(docker_builds, shell(docker_builds.image, memory))) == 256 * 1024 * 1024
    reached = f"python3 -c \"import socket; socket.create_connection(('{host_address}', {other_listener.port}), 5)\""
    assert await docker_builds.builds.run(shell(docker_builds.image, reached), ignore) == 1
