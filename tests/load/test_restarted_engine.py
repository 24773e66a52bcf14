"""A Docker Engine that is restarted under load, in the ways that engines are: asked to end or killed, with live restore
or without."""

from __future__ import annotations

import json
import re
import signal
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import structlog

from app.main import sandbox_images
from app.settings import ROOT, Settings
from tests.e2e.installation import Installation, wait_until
from tests.e2e.legacy_session import LegacySession
from tests.load.installations import Answer, client, create, run_in_each, waiting_pods
from tests.load.own_engine import OwnEngine

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

_log = structlog.get_logger()

ANSWER_WITHIN_S = 60.0
AT_REST_WITHIN_S = 120.0
CREATORS = 2
PROBE = (ROOT / "tests" / "fixtures" / "probe_server.py").read_text()
"""As a server in a container of its own. Its tool `count` tells whether anybody has called it before."""
COUNTED = re.compile(r'"text": ?"(\d+)"')

CALL_ANSWERS = {200, 404, 502}
"""By docs/api.md. 404 is of a gateway that is about to end: its sessions have ended."""
CREATE_ANSWERS = {201, 424, 500, 503, 507}
"""By docs/api.md."""


@dataclass(frozen=True, slots=True)
class Restart:
    by: signal.Signals
    live_restore: bool


RESTARTS = {
    "asked to end": Restart(signal.SIGTERM, live_restore=False),
    "killed": Restart(signal.SIGKILL, live_restore=False),
    "asked to end, live restore": Restart(signal.SIGTERM, live_restore=True),
    "killed, live restore": Restart(signal.SIGKILL, live_restore=True),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "restart" in metafunc.fixturenames:
        is_full_size = metafunc.config.getoption("--storm", default=False)
        chosen = list(RESTARTS) if is_full_size else ["asked to end"]
        metafunc.parametrize("restart", [RESTARTS[name] for name in chosen], ids=chosen)


@pytest.fixture(scope="module")
def engine() -> Iterator[OwnEngine]:
    """With the sandbox images."""
    images = sandbox_images(Settings())
    folder = Path(tempfile.gettempdir(), f"sandgate-engine-{uuid.uuid4().hex[:8]}")  # containerd takes no _ at its end
    folder.mkdir()
    engine = OwnEngine(folder)
    try:
        engine.start()
        engine.load([images.base, images.workspace, images.gateway])
        engine.end(signal.SIGTERM)
        yield engine
    finally:
        engine.remove()


@pytest.fixture
def installation(tmp_path: Path, engine: OwnEngine, is_full_size: bool) -> Iterator[Installation]:
    home = tmp_path / "home"
    servers = home / "catalog" / "servers"
    servers.mkdir(parents=True)
    manifest = {
        "name": "counting",
        "title": "Counting",
        "description": "For tests.",
        "category": "test",
        "type": "server",
        "image": sandbox_images(Settings()).base,
        "command": ["python3", "-c", PROBE],
    }
    (servers / "counting.yaml").write_text(json.dumps(manifest))
    settings = {
        "SANDGATE_POOL": f"base=0,mcp-gateway={3 if is_full_size else 1}",
        # A create whose server went with the engine is answered once this is over, which has to be in time.
        "SANDGATE_SERVER_START_TIMEOUT_S": "30",
    }
    installation = Installation(home, settings, engine_url=engine.url)
    yield installation
    if (home / "installation").exists():
        installation.remove()
    engine.end(signal.SIGTERM)


@dataclass
class Load:
    """Tool calls to sandboxes one after the other, and creates beside them, until it is told to end."""

    installation: Installation
    calls: dict[str, list[Answer]] = field(default_factory=dict)
    """By sandbox; the body is the counter's number, or None."""
    creates: list[Answer] = field(default_factory=list)
    _is_over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def on(self, sandboxes: list[dict[str, object]]) -> Iterator[None]:
        threads = [self._repeating(self._caller(sandbox)) for sandbox in sandboxes]
        with client(self.installation) as http:
            threads += [
                self._repeating(lambda: self.creates.append(create(http, mcp={"counting": {}})))
                for _ in range(CREATORS)
            ]
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self._is_over.set()
                for thread in threads:
                    thread.join(ANSWER_WITHIN_S)
        assert not any(thread.is_alive() for thread in threads), "a request is past its deadline"

    def created(self) -> list[str]:
        return [answer.sandbox_id for answer in self.creates if answer.status == 201]

    def _repeating(self, step: Callable[[], None]) -> threading.Thread:
        def repeat() -> None:
            while not self._is_over.wait(0.05):
                step()

        return threading.Thread(target=repeat)

    def _caller(self, sandbox: dict[str, object]) -> Callable[[], None]:
        session = LegacySession(sandbox)
        answers = self.calls.setdefault(str(sandbox["sandboxID"]), [])
        return lambda: answers.append(count(session))


def count(session: LegacySession) -> Answer:
    """Fails if there is no answer in time."""
    body = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "count", "arguments": {}}}
    began = time.monotonic()
    answer = httpx.post(session.url, json=body, headers=session.headers, timeout=ANSWER_WITHIN_S, trust_env=False)
    found = COUNTED.search(answer.text)
    return Answer(answer.status_code, time.monotonic() - began, int(found[1]) if found else None)


def wait_until_at_rest(installation: Installation, *, least_waiting: int, held_volumes: bool = False) -> None:
    """Everything on the engine runs and belongs to a sandbox, which has three containers, or to a pod that waits.

    With `held_volumes` there may be volumes besides: engines up to 24.0.2 hold on to those of containers that they
    found running, until their next start.
    """

    def found() -> tuple[int, int, int, int, set[str]]:
        containers = installation.containers()
        pods = {name.split("-")[1] for name in containers}
        strays = {volume for volume in installation.volumes() if volume.split("-")[1] not in pods}
        running = len(installation.running_containers())
        return len(containers), running, len(installation.sandboxes()), waiting_pods(installation), strays

    def is_so() -> bool:
        containers, running, sandboxes, waiting, strays = found()
        expected = 3 * sandboxes + 2 * waiting
        return containers == running == expected and waiting >= least_waiting and (held_volumes or not strays)

    wait_until(is_so, lambda: (found(), installation.log.read_text()[-5000:]), within_s=AT_REST_WITHIN_S)


def test_a_restart_under_load_costs_what_it_ends_and_leaks_nothing(
    engine: OwnEngine, installation: Installation, is_full_size: bool, restart: Restart
) -> None:
    warm = int(installation.settings["SANDGATE_POOL"].rpartition("=")[2])
    engine.start(live_restore=restart.live_restore)
    installation.start()
    before = [installation.create(mcp={"counting": {}}, timeout=900) for _ in range(10 if is_full_size else 2)]
    wait_until_at_rest(installation, least_waiting=warm)
    load = Load(installation)
    with load.on(before):
        wait_until(lambda: bool(load.created()), lambda: load.creates)
        engine.end(restart.by)
        engine.start(live_restore=restart.live_restore)
        known = len(load.creates)
        wait_until(lambda: any(a.status == 201 for a in load.creates[known:]), lambda: load.creates[known:])
    wait_until_at_rest(installation, least_waiting=warm, held_volumes=restart.live_restore)
    survivors = installation.sandboxes()
    calls = [answer for answers in load.calls.values() for answer in answers]
    _log.info(
        "engine_restarted",
        creates=dict(Counter(answer.status for answer in load.creates)),
        slowest_create_s=round(max(answer.took_s for answer in load.creates), 1),
        calls=dict(Counter(answer.status for answer in calls)),
        slowest_call_s=round(max(answer.took_s for answer in calls), 1),
        survivors=len(survivors),
    )
    assert {answer.status for answer in load.creates} <= CREATE_ANSWERS
    assert {answer.status for answer in calls} <= CALL_ANSWERS
    assert max(answer.took_s for answer in [*calls, *load.creates]) < ANSWER_WITHIN_S
    assert len(set(load.created())) == len(load.created())
    older = {str(sandbox["sandboxID"]) for sandbox in before}
    assert older <= set(survivors) if restart.live_restore else older.isdisjoint(survivors)
    for answers in load.calls.values():
        counted = [answer.body for answer in answers if answer.body is not None]
        assert counted == sorted(set(counted)), "a server began anew, or another sandbox's was called"
    run_in_each(installation, survivors)
    assert "Traceback" not in installation.log.read_text()
    for sandbox_id in survivors:
        installation.delete(sandbox_id)
    if restart.live_restore:
        wait_until(lambda: installation.sandboxes() == [], installation.sandboxes)
        installation.stop()
        engine.end(signal.SIGTERM)
        # Without live restore it finds nothing running, so that it holds no volumes of pods that the pool lets go.
        engine.start(live_restore=False)
        installation.start()
    wait_until_at_rest(installation, least_waiting=warm)
