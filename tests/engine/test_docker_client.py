"""Engines that misbehave, each in one way: the real one behind a door that closes, and one that only pretends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import docker
import pytest
from aiohttp import web

from app.engines.debian_base import MADE_HERE, debian_base
from app.engines.docker_client import DockerClient
from app.engines.docker_engine import DockerEngine
from app.engines.docker_runs import DockerRuns
from app.engines.interface import Limits
from app.engines.runs import RunSpec
from app.errors import EngineError, EngineOutOfSpace, EngineUnavailable, ImageMissing
from tests.engine_door import Door
from tests.ports import free_port
from tests.waiting import BOUND_S

# docker/transport/unixconn.py does not close a socket that could not connect.
leaves_a_socket_to_the_collector = pytest.mark.filterwarnings(
    "ignore:.*<socket.socket.*:pytest.PytestUnraisableExceptionWarning", "ignore:unclosed <socket:ResourceWarning"
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def pretended_engine(path: Path, answers: dict[tuple[str, str], Handler]) -> AsyncIterator[str]:
    """An HTTP server on a unix socket that knows its version and `answers`, by method and path behind the version."""
    app = web.Application()
    app.router.add_get("/version", _version)
    for (method, where), handler in answers.items():
        app.router.add_route(method, f"/v1.41{where}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        yield f"unix://{path}"
    finally:
        await runner.cleanup()


async def _version(request: web.Request) -> web.Response:
    return web.json_response({"ApiVersion": "1.41", "Version": "20.10.24"})


def _refuses(status: int, message: str) -> Handler:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"message": message}, status=status)

    return refuse


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    door = Door(tmp_path / "door.sock")
    await door.open()
    yield door
    await door.shut()
    gc.collect()


@pytest.mark.docker
@leaves_a_socket_to_the_collector
async def test_an_engine_that_went_away_is_unavailable_and_serves_again_once_it_is_back(door: Door) -> None:
    engine = DockerEngine("tests-away", guard_image="sandgate/absent:1", base_url=door.url)
    try:
        before = await engine.check()
        await door.shut()
        with pytest.raises(EngineUnavailable):
            await engine.check()
        with pytest.raises(EngineUnavailable):
            await engine.observe()
        with pytest.raises(EngineUnavailable):
            await engine.stop("any")
        await door.open()
        assert await engine.check() == before
        assert await engine.observe() == {}
    finally:
        await engine.aclose()


@pytest.mark.docker
@leaves_a_socket_to_the_collector
async def test_an_engine_may_come_up_after_the_control_plane(door: Door) -> None:
    await door.shut()
    engine = DockerEngine("tests-away", guard_image="sandgate/absent:1", base_url=door.url)
    try:
        with pytest.raises(EngineUnavailable):
            await engine.check()
        await door.open()
        assert (await engine.check()).name == "Docker Engine"
    finally:
        await engine.aclose()


async def test_nothing_goes_on_of_a_run_that_no_engine_could_be_asked_for() -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    client = DockerClient(base_url=url, max_workers=1, timeout_s=5)
    runs = DockerRuns(client, base_url=url, timeout_s=5, installation="tests-away", runtime=None)
    spec = RunSpec(image="img:1", command=("true",), limits=Limits(memory_mib=48, cpus=1, pids=16), timeout_s=30)
    try:
        with pytest.raises(EngineUnavailable):
            await runs.run("p1", spec)
        assert [task for task in asyncio.all_tasks() if task.get_name().startswith("end sandgate-p1-run-")] == []
    finally:
        await runs.aclose()
        await client.aclose()


async def test_an_engine_that_never_answers_is_unavailable(tmp_path: Path) -> None:
    never = asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        await never.wait()
        return web.Response()

    async with pretended_engine(tmp_path / "s", {("GET", "/containers/json"): hang}) as url:
        engine = DockerEngine("tests-hang", guard_image="sandgate/absent:1", base_url=url, timeout_s=1)
        try:
            with pytest.raises(EngineUnavailable, match="list the sandboxes' containers"):
                await engine.observe()
        finally:
            never.set()
            await engine.aclose()


async def _breaks_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b'{"id": "0123456789ab", "status": "Downloading"}\r\n')
    assert request.transport is not None
    request.transport.abort()
    return response


async def test_an_engine_that_goes_away_in_the_middle_of_a_stream_is_unavailable(tmp_path: Path) -> None:
    seen: list[str] = []

    def follow(api: docker.APIClient) -> None:
        seen.extend(event["status"] for event in api.pull("img", tag="1", stream=True, decode=True))

    async with pretended_engine(tmp_path / "s", {("POST", "/images/create"): _breaks_off}) as url:
        client = DockerClient(base_url=url, max_workers=1, timeout_s=5)
        try:
            with pytest.raises(EngineUnavailable, match="Could not pull it"):
                await client.call(follow, doing="pull it")
        finally:
            await client.aclose()
    assert seen == ["Downloading"]


async def test_a_base_whose_pull_breaks_off_is_replaced_at_once_and_not_waited_for(tmp_path: Path) -> None:
    async def look(request: web.Request) -> web.Response:
        if request.match_info["name"] == MADE_HERE:
            return web.json_response({"Id": "sha256:0"})
        return web.json_response({"message": "No such image"}, status=404)

    answers: dict[tuple[str, str], Handler] = {
        ("GET", "/images/{name:.+}/json"): look,
        ("POST", "/images/create"): _breaks_off,
    }
    lines: list[str] = []
    async with pretended_engine(tmp_path / "s", answers) as url:
        client = docker.DockerClient(base_url=url, version="1.41")
        try:
            base = await asyncio.to_thread(debian_base, client, "img:1", lines.append, registry_silence_s=BOUND_S)
        finally:
            client.close()
    assert base == MADE_HERE
    assert lines[1].startswith("img:1 cannot be pulled: ('Connection broken: ")


async def test_a_full_disk_is_told_apart(tmp_path: Path) -> None:
    full = _refuses(500, "mkdir /var/lib/docker/overlay2/x: no space left on device")
    async with pretended_engine(tmp_path / "s", {("GET", "/containers/json"): full}) as url:
        engine = DockerEngine("tests-full", guard_image="sandgate/absent:1", base_url=url)
        try:
            with pytest.raises(EngineOutOfSpace, match="disk is full"):
                await engine.observe()
        finally:
            await engine.aclose()


async def test_a_volume_that_the_engine_miscounts_keeps_no_pod_from_ending(tmp_path: Path) -> None:
    """As Engine 20.10 does after a start with live restore."""

    async def no_containers(request: web.Request) -> web.Response:
        return web.json_response([])

    async def volumes(request: web.Request) -> web.Response:
        return web.json_response({"Volumes": [{"Name": "v"}]})

    asked: list[str] = []

    async def miscounted(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"message": "remove v: volume has active mounts"}, status=500)

    answers: dict[tuple[str, str], Handler] = {
        ("GET", "/containers/json"): no_containers,
        ("GET", "/volumes"): volumes,
        ("DELETE", "/volumes/v"): miscounted,
    }
    async with pretended_engine(tmp_path / "s", answers) as url:
        engine = DockerEngine("tests-miscounted", guard_image="sandgate/absent:1", base_url=url)
        try:
            await engine.stop("p1")
        finally:
            await engine.aclose()
    assert asked == ["/v1.41/volumes/v"]


async def test_a_refusal_carries_the_engines_reason(tmp_path: Path) -> None:
    refusal = _refuses(500, "the reason")
    async with pretended_engine(tmp_path / "s", {("GET", "/containers/json"): refusal}) as url:
        engine = DockerEngine("tests-refusal", guard_image="sandgate/absent:1", base_url=url)
        try:
            with pytest.raises(EngineError, match="Could not list the sandboxes' containers: the reason"):
                await engine.observe()
        finally:
            await engine.aclose()


async def test_a_missing_image_is_told_apart_from_a_missing_container(tmp_path: Path) -> None:
    answers = {
        ("GET", "/images/img:1/json"): _refuses(404, "No such image: img:1"),
        ("GET", "/containers/c/json"): _refuses(404, "No such container: c"),
    }

    def inspect_image(api: docker.APIClient) -> object:
        return api.inspect_image("img:1")  # type: ignore[no-untyped-call]  # as the stubs have it

    async with pretended_engine(tmp_path / "s", answers) as url:
        client = DockerClient(base_url=url, max_workers=2, timeout_s=5)
        try:
            with pytest.raises(ImageMissing, match="img:1"):
                await client.call(inspect_image, doing="look", image="img:1")
            with pytest.raises(EngineError, match="No such container"):
                await client.call(lambda api: api.inspect_container("c"), doing="look", image="img:1")
        finally:
            await client.aclose()


async def test_calls_run_side_by_side_up_to_the_bound(tmp_path: Path) -> None:
    inside, most = 0, 0
    two_inside = asyncio.Event()

    async def count(request: web.Request) -> web.Response:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if inside == 2:
            two_inside.set()
        async with asyncio.timeout(BOUND_S):
            await two_inside.wait()
        inside -= 1
        return web.json_response([])

    async with pretended_engine(tmp_path / "s", {("GET", "/containers/json"): count}) as url:
        engine = DockerEngine("tests-bound", guard_image="sandgate/absent:1", base_url=url, max_workers=2)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(6):
                    group.create_task(engine.observe())
        finally:
            await engine.aclose()
    assert most == 2


@pytest.mark.parametrize("installation", ["", "Upper", "has space", "-front", "x" * 33])
def test_an_installation_that_cannot_be_a_name_is_refused(installation: str) -> None:
    with pytest.raises(ValueError, match="installation"):
        DockerEngine(installation, guard_image="sandgate/absent:1")
