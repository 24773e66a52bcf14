"""What may go wrong around a control plane: it is killed, the engine goes away, containers die, state is lost."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import docker
import httpx
import pytest

from tests.e2e.conftest import SECRET
from tests.e2e.installation import Installation, call, mcp_client, wait_until
from tests.e2e.legacy_session import LegacySession
from tests.engine_door import Door
from tests.waiting import BOUND_S

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

WITH_SERVERS = {"time": {}, "echoImage": {"echoApiKey": SECRET}}
MOMENTS = 6
CREATED_WITHIN_S = 120.0
SWEPT_WITHIN_S = 90.0
"""Two sweeps and the removal, on a machine with other work on its hands."""


def says(text: str) -> str:
    """How a tool's result looks in an answer."""
    return f'"text":"{text}"'


def inside(container: str, *command: str) -> str:
    done = subprocess.run(["docker", "exec", container, *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def create_in_background(installation: Installation, **body: object) -> threading.Thread:
    """A create whose outcome nobody hears of."""

    def create() -> None:
        with suppress(httpx.TransportError), installation.http() as http:
            http.post("/v2/sandboxes", json={"timeout": 600, **body})

    thread = threading.Thread(target=create)
    thread.start()
    return thread


def wait_until_only_what_runs_is_left(installation: Installation, *, containers: int) -> None:
    """`containers` is how many a running sandbox has."""

    def is_so() -> bool:
        return len(installation.containers()) == containers * len(installation.sandboxes())

    wait_until(is_so, lambda: (installation.sandboxes(), installation.containers(), installation.log.read_text()))


@pytest.mark.parametrize(("mcp", "containers"), [(None, 1), (WITH_SERVERS, 3)])
def test_a_control_plane_killed_during_a_create_leaves_nothing_behind(
    own_installation: Installation, mcp: dict[str, object] | None, containers: int
) -> None:
    installation = own_installation
    installation.start()
    body: dict[str, object] = {} if mcp is None else {"mcp": mcp}
    began = time.monotonic()
    sandbox_id = installation.create(**body)["sandboxID"]
    takes_s = time.monotonic() - began
    installation.delete(sandbox_id)
    for moment in range(MOMENTS):
        create = create_in_background(installation, **body)
        time.sleep(takes_s * (moment + 0.5) / MOMENTS)  # the moment of the fault, which waits for nothing
        installation.kill()
        create.join(timeout=30)
        installation.start()
        wait_until_only_what_runs_is_left(installation, containers=containers)
    for sandbox_id in installation.sandboxes():
        installation.sdk(sandbox_id).commands.run("true")
        installation.delete(sandbox_id)
    installation.wait_until_nothing_runs()
    assert "Traceback" not in installation.log.read_text()


def test_a_control_plane_killed_during_a_delete_goes_on_with_it(own_installation: Installation) -> None:
    installation = own_installation
    installation.start()
    for delay_s in (0.0, 0.1, 0.3):
        sandbox_id = installation.create(mcp=WITH_SERVERS)["sandboxID"]
        installation.delete(sandbox_id)
        time.sleep(delay_s)  # the moment of the fault
        installation.kill()
        installation.start()
        assert installation.sandboxes() == []
        installation.wait_until_nothing_runs()


def test_an_open_session_outlives_the_control_plane(own_installation: Installation) -> None:
    installation = own_installation
    installation.start()
    created = installation.create(mcp={"probe": {}})
    sandbox_id = created["sandboxID"]
    workspace = installation.container(sandbox_id, "workspace")
    session = LegacySession(created)
    assert says("1") in session.call("count")

    installation.kill()
    headers = [part for name, value in session.headers.items() for part in ("-H", f"{name}: {value}")]
    message = '{"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "count", "arguments": {}}}'
    url = "http://localhost:50005/mcp"
    assert says("2") in inside(
        workspace, "curl", "-sS", url, *headers, "-H", "Content-Type: application/json", "-d", message
    )

    installation.start()
    assert says("3") in session.call("count")
    with installation.http() as http:
        again = http.post(f"/sandboxes/{sandbox_id}/connect", json={}).json()
    assert installation.states(sandbox_id) == {"probe": "ready"}
    assert again["mcp"]["token"] == created["mcp"]["token"]
    assert installation.sdk(sandbox_id).commands.run("mcp-gateway pull time", user="root").exit_code == 0
    installation.delete(sandbox_id)
    installation.wait_until_nothing_runs()


def test_a_sandbox_that_ended_while_nobody_watched_is_removed(own_installation: Installation) -> None:
    installation = own_installation
    installation.start()
    short = installation.create(timeout=3)["sandboxID"]
    long = installation.create()["sandboxID"]
    installation.kill()
    time.sleep(3)  # its whole life
    installation.start()
    wait_until(lambda: installation.sandboxes() == [long], installation.log.read_text)
    wait_until_only_what_runs_is_left(installation, containers=1)
    with installation.http() as http:
        assert http.get(f"/sandboxes/{short}").status_code == 404


def test_a_stop_ends_open_streams_and_leaves_sandboxes_running(own_installation: Installation) -> None:
    installation = own_installation
    installation.start()
    created = installation.create(mcp={"probe": {}})
    session = LegacySession(created)
    headers = {**session.headers, "Accept": "text/event-stream"}
    with httpx.stream("GET", session.url, headers=headers, timeout=60, trust_env=False) as stream:
        assert stream.status_code == 200
        installation.stop()
        with suppress(httpx.RemoteProtocolError):
            stream.read()
    assert len(installation.containers()) == 2
    log = installation.log.read_text()
    assert "timeout graceful shutdown exceeded" not in log  # uvicorn's words about a stream that stayed open
    assert "Traceback" not in log
    installation.start()
    assert says("1") in session.call("count")


def test_a_sandbox_ends_when_its_time_is_over(installation: Installation) -> None:
    before = set(installation.containers())
    created = installation.create(timeout=1, mcp={"time": {}})
    sandbox_id = created["sandboxID"]
    with installation.http() as http:
        wait_until(lambda: http.get(f"/sandboxes/{sandbox_id}").status_code == 404, installation.sandboxes)
        assert http.post(created["mcp"]["url"], json={}).status_code == 502
    wait_until(lambda: set(installation.containers()) <= before, installation.log.read_text)


def test_a_second_delete_finds_nothing(installation: Installation) -> None:
    sandbox_id = installation.create()["sandboxID"]
    with installation.http() as http:
        assert [http.delete(f"/sandboxes/{sandbox_id}").status_code for _ in range(3)] == [204, 404, 404]


def test_a_delete_ends_a_create_that_is_under_way(own_installation: Installation) -> None:
    installation = own_installation
    installation.start()
    with ThreadPoolExecutor(1) as pool, installation.http() as http:
        create = pool.submit(http.post, "/v2/sandboxes", json={"mcp": {"mute": {}}})
        wait_until(lambda: len(installation.containers()) == 2, installation.log.read_text)
        # Its id is not told before it runs.
        database = sqlite3.connect(installation.home / "sandgate.db")
        ((sandbox_id,),) = database.execute("SELECT id FROM sandboxes").fetchall()
        database.close()
        assert installation.sandboxes() == []
        with installation.http() as other:
            assert other.delete(f"/sandboxes/{sandbox_id}").status_code == 204
        answer = create.result(timeout=60)
    assert answer.status_code == 409
    assert "was stopped meanwhile" in answer.json()["message"]
    installation.wait_until_nothing_runs()


def test_twenty_creates_at_once_leak_nothing(installation: Installation) -> None:
    bodies: list[dict[str, object]] = [{"mcp": {"time": {}}} if number % 5 == 0 else {} for number in range(20)]

    def create(body: dict[str, object]) -> httpx.Response:
        """Again and again where the server has too much to do and says when to come back."""
        give_up_at = time.monotonic() + CREATED_WITHIN_S
        with installation.http() as http:
            while True:
                answer = http.post("/v2/sandboxes", json={"timeout": 600, **body})
                if answer.status_code != 503 or time.monotonic() > give_up_at:
                    return answer
                time.sleep(float(answer.headers["Retry-After"]))

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(create, bodies))
    assert Counter(answer.status_code for answer in answers) == {201: 20}, [answer.text for answer in answers]
    created = [answer.json()["sandboxID"] for answer in answers]
    assert set(created) <= set(installation.sandboxes())
    pods = [installation.container(sandbox_id, "workspace").split("-")[1] for sandbox_id in created]
    for sandbox_id in created:
        installation.delete(sandbox_id)
    wait_until(
        lambda: not any(installation.containers(**{"sandgate.pod": pod_id}) for pod_id in pods),
        installation.log.read_text,
    )


class HoldingDoor(Door):
    """Holds back, while it is told to, whoever asks that a container be started, until it is shut."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.holds_starts = False
        self.start_was_asked = asyncio.Event()

    async def _let_through(self, sent: bytes) -> None:
        if self.holds_starts and re.match(rb"POST \S+/containers/\S+/start ", sent):
            self.start_was_asked.set()
            await asyncio.get_running_loop().create_future()  # which `shut` cancels


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[HoldingDoor]:
    door = HoldingDoor(tmp_path / "engine.sock")
    yield door
    await door.shut()


async def test_an_engine_that_goes_away_and_comes_back(own_installation: Installation, door: HoldingDoor) -> None:
    installation = own_installation
    installation.settings = {**installation.settings, "DOCKER_HOST": door.url}
    await asyncio.to_thread(installation.start)
    async with httpx.AsyncClient(
        base_url=installation.url, headers={"X-API-KEY": installation.key}, timeout=60, trust_env=False
    ) as http:

        async def create() -> httpx.Response:
            return await http.post("/v2/sandboxes", json={"timeout": 600, "mcp": {"probe": {}}})

        def refused(answer: httpx.Response) -> None:
            assert (answer.status_code, answer.headers.get("Retry-After")) == (503, "5"), answer.text
            assert "container engine does not answer" in answer.json()["message"]

        refused(await create())
        await door.open()
        created = (await create()).json()
        assert "sandboxID" in created, created

        await door.shut()
        refused(await create())
        async with mcp_client(created) as client:
            assert await call(client, "count") == "1"

        # An engine that goes away in the middle of it.
        door.holds_starts = True
        await door.open()
        under_way = asyncio.create_task(create())
        async with asyncio.timeout(BOUND_S):
            await door.start_was_asked.wait()
        assert len(await asyncio.to_thread(installation.containers)) >= 3
        await door.shut()
        refused(await under_way)
        door.holds_starts = False
        doomed = created["sandboxID"]
        assert (await http.delete(f"/sandboxes/{doomed}")).status_code == 204
        assert (await http.get(f"/sandboxes/{doomed}")).status_code == 404
        await door.open()
        await asyncio.to_thread(installation.wait_until_nothing_runs)
        assert (await create()).status_code == 201
    assert "Traceback" not in installation.log.read_text()


def test_a_sandbox_that_lost_a_container_is_gone(installation: Installation) -> None:
    lost = {role: installation.create(mcp={"time": {}}) for role in ("workspace", "gateway")}
    client = docker.APIClient()
    pods = {c["sandboxID"]: installation.container(c["sandboxID"], "workspace").split("-")[1] for c in lost.values()}
    for role, created in lost.items():
        client.kill(installation.container(created["sandboxID"], role))
    client.close()
    with installation.http() as http:
        for created in lost.values():
            sandbox_id = created["sandboxID"]

            def is_gone(sandbox_id: str = sandbox_id) -> bool:
                left = installation.containers(**{"sandgate.pod": pods[sandbox_id]})
                return not left and http.get(f"/sandboxes/{sandbox_id}").status_code == 404

            wait_until(is_gone, installation.log.read_text, within_s=SWEPT_WITHIN_S)
            assert http.post(created["mcp"]["url"], json={}).status_code == 502
            routed = {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": "49983"}
            assert http.get("/health", headers=routed).status_code == 502


def test_a_lost_database_costs_the_sandboxes_and_nothing_else(own_installation: Installation) -> None:
    installation = own_installation
    installation.start()
    installation.create(mcp={"time": {}})
    installation.stop()
    for file in installation.home.glob("sandgate.db*"):
        file.unlink()
    installation.start()
    installation.wait_until_nothing_runs()
    assert installation.sandboxes() == []
    installation.create()


@pytest.mark.parametrize("damage", ["folder", "garbage"])
def test_an_unusable_database_is_told_in_one_line(own_installation: Installation, damage: str) -> None:
    file = own_installation.home / "sandgate.db"
    if damage == "folder":
        file.mkdir()
    else:
        file.write_bytes(b"this is not a database" * 1000)
    refused = own_installation.run("serve")
    assert refused.returncode == 1
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert "database" in refused.stderr


def test_a_database_server_that_is_away_is_told_in_one_line(own_installation: Installation) -> None:
    password = "not-to-be-seen"
    url = f"postgresql+asyncpg://someone:{password}@127.0.0.1:1/sandgate"
    refused = own_installation.run("serve", SANDGATE_DATABASE_URL=url)
    assert refused.returncode == 1
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert "database" in refused.stderr
    assert password not in refused.stderr


def test_a_wrong_encryption_key_is_told_before_anything_is_touched(own_installation: Installation) -> None:
    installation = own_installation
    installation.start()
    sandbox_id = installation.create()["sandboxID"]
    installation.stop()
    key_file = installation.home / "encryption-key"
    key = key_file.read_bytes()
    for wrong in (None, b"not a key", b"A" * 43 + b"="):
        key_file.unlink()
        if wrong is not None:
            key_file.write_bytes(wrong)
        refused = installation.run("serve")
        assert refused.returncode == 1
        assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
        assert str(key_file) in refused.stderr
    key_file.write_bytes(key)
    installation.start()
    assert installation.sandboxes() == [sandbox_id]
    assert installation.sdk(sandbox_id).commands.run("echo here").stdout == "here\n"
