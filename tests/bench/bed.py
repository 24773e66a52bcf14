"""What every measurement stands on: an installation of its own, with the bench's own servers in its catalog."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import httpx

from app.accounts import Accounts
from app.database import Database
from app.engines.docker_engine import DockerEngine
from app.engines.network_guard import GuardNames
from app.main import installation_name, sandbox_images
from app.settings import Settings
from tests.bench.echo_server import __file__ as _ECHO_SERVER
from tests.bench.processes import SandboxProcesses
from tests.bench.wire import Endpoint, Era, http_client
from tests.e2e.installation import Installation, wait_until
from tests.shipped_packages import shipped_package_field

ERAS: tuple[Era, ...] = ("legacy", "modern")
ECHO_SERVERS: Mapping[str, Mapping[str, Any]] = {"benchLegacy": {}, "benchModern": {}}
"""As in the body of a create request."""

NO_POOL = "base=0,mcp-gateway=0"

_POOL_DEADLINE_S = 120.0
_POOL_RESTS_S = 0.7
"""Longer than the pool itself takes to look again after a create."""


@dataclass(frozen=True, slots=True)
class Bed:
    installation: Installation
    client: docker.APIClient
    http: httpx.Client = field(default_factory=http_client)
    """Its connections are kept, so that no create waits for one."""

    @property
    def control_plane(self) -> int:
        """Process id of the server, which holds the edge."""
        return self.installation.pid

    @property
    def network(self) -> str:
        """What pods are on that may not reach the internet."""
        return GuardNames.of(installation_name(self.installation.home)).offline_network

    def create(self, *, key: str | None = None, **body: Any) -> dict[str, Any]:
        """The answer to a create request, of the first team unless another's key is given."""
        url = f"{self.installation.url}/v2/sandboxes"
        answer = self.http.post(url, headers=self._headers(key), json={"timeout": 3600, **body})
        assert answer.status_code == 201, f"{answer.text}\n{self.installation.log.read_text()[-3000:]}"
        return dict(answer.json())

    def post(self, path: str, **body: object) -> Any:
        """The answer of the API, which must be a success."""
        answer = self.http.post(f"{self.installation.url}{path}", headers=self._headers(None), json=body)
        assert answer.is_success, f"{answer.text}\n{self.installation.log.read_text()[-3000:]}"
        return answer.json() if answer.content else None

    def delete(self, path: str) -> None:
        answer = self.http.delete(f"{self.installation.url}{path}", headers=self._headers(None))
        assert answer.is_success, answer.text

    def kill(self, sandbox_id: str, key: str | None = None) -> None:
        """Returns once its containers are gone."""
        pod = self.pod_of(sandbox_id)
        self.http.delete(f"{self.installation.url}/sandboxes/{sandbox_id}", headers=self._headers(key))
        remaining = {"sandgate.pod": pod}
        wait_until(lambda: not self.installation.containers(**remaining), lambda: remaining)

    @contextmanager
    def sandbox(self, **body: Any) -> Iterator[dict[str, Any]]:
        """The answer to a create request. The sandbox is gone at the end, containers included."""
        created = self.create(**body)
        try:
            yield created
        finally:
            self.kill(created["sandboxID"])

    def new_team(self) -> str:
        """The key of a team of its own, which remembers nothing of any server's tools."""
        return asyncio.run(self._new_team())

    def set_pool(self, pool: str) -> None:
        """Start the server anew with these many warm pods (`SANDGATE_POOL`) and wait until they are there."""
        self.installation.stop()
        self.installation.settings = {**self.installation.settings, "SANDGATE_POOL": pool}
        self.installation.start()
        self.until_pool_rests()

    def until_pool_rests(self) -> None:
        """Wait until as many pods as are set wait ready, and for a while none is being made."""
        wanted = sum(int(entry.partition("=")[2]) for entry in self.installation.settings["SANDGATE_POOL"].split(","))
        give_up_at = time.monotonic() + _POOL_DEADLINE_S
        rests_since = time.monotonic()
        while time.monotonic() < rests_since + _POOL_RESTS_S:
            query = "SELECT count(*), count(ready_at) FROM pods WHERE sandbox_id IS NULL"
            ((warm, ready),) = self._rows(query)
            if warm != ready or ready < wanted:
                rests_since = time.monotonic()
                assert rests_since < give_up_at, (
                    f"{ready} of {wanted} pods\n{self.installation.log.read_text()[-3000:]}"
                )
            time.sleep(0.05)

    def until_remembered(self, servers: Mapping[str, object]) -> None:
        """Wait until some team's memory holds the tools of these servers."""
        query = (
            "SELECT count(DISTINCT server) FROM remembered_lists WHERE server IN (" + ",".join("?" * len(servers)) + ")"
        )
        wait_until(lambda: self._rows(query, *servers) == [(len(servers),)], lambda: f"not remembered: {list(servers)}")

    def rehearsals(self, server: str) -> set[str]:
        """Fingerprints of those in which a server, by its catalog name, listed something."""
        return {row[0] for row in self._rows("SELECT fingerprint FROM rehearsed_lists WHERE server = ?", server)}

    def pod_of(self, sandbox_id: str) -> str:
        ((pod,),) = self._rows("SELECT id FROM pods WHERE sandbox_id = ?", sandbox_id)
        return str(pod)

    def processes_of(self, sandbox: Mapping[str, Any]) -> SandboxProcesses:
        return SandboxProcesses(self.client, self.pod_of(sandbox["sandboxID"]))

    def edge(self, sandbox: Mapping[str, Any]) -> Endpoint:
        """The URL that the create request answered."""
        path = f"/sandboxes/{sandbox['sandboxID']}/mcp"
        return Endpoint("127.0.0.1", self.installation.port, path, sandbox["mcp"]["token"])

    def gateway(self, sandbox: Mapping[str, Any]) -> Endpoint:
        """The gateway itself, without the edge before it."""
        return Endpoint(self.processes_of(sandbox).address, 50005, "/mcp", sandbox["mcp"]["token"])

    def _headers(self, key: str | None) -> dict[str, str]:
        return {"X-API-KEY": key or self.installation.key}

    def _rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        database = sqlite3.connect(self.installation.home / "sandgate.db", timeout=30)
        try:
            return database.execute(query, parameters).fetchall()
        finally:
            database.close()

    async def _new_team(self) -> str:
        database = Database(f"sqlite+aiosqlite:///{self.installation.home / 'sandgate.db'}")
        try:
            accounts = Accounts(database)
            return await accounts.create_key(await accounts.create_team("bench"), "bench")
        finally:
            await database.aclose()


@contextmanager
def installed(
    *, pool: str = NO_POOL, settings: Mapping[str, str] | None = None, manifests: Mapping[str, Any] | None = None
) -> Iterator[Bed]:
    """Nothing of it is left at the end, on the engine or on disk; the images stay.

    `manifests` are servers of the catalog besides the bench's own, by name.
    """
    client = docker.APIClient()
    try:
        with tempfile.TemporaryDirectory(prefix="sandgate-bench-") as home, http_client() as http:
            _write_manifests(Path(home), manifests or {})
            # Byte code is kept, as it is wherever Sandgate is not started for the first time; and what else the machine
            # is busy with is to make a run slow, not fail it.
            own = {"PYTHONDONTWRITEBYTECODE": "", "SANDGATE_POOL": pool, "SANDGATE_SERVER_START_TIMEOUT_S": "120"}
            installation = Installation(Path(home), {**(settings or {}), **own})
            try:
                installation.start()
                yield Bed(installation, client, http)
            finally:
                installation.stop()
                asyncio.run(_remove(installation))
    finally:
        client.close()


def echo_command(python: str, era: Era) -> list[str]:
    return [python, "-c", Path(_ECHO_SERVER).read_text(), era]


def _write_manifests(home: Path, others: Mapping[str, Any]) -> None:
    """JSON is YAML. The package is there for its name: the bench's server is brought along in its command."""
    folder = home / "catalog" / "servers"
    folder.mkdir(parents=True)
    echo = {
        f"bench-{era}": {
            "type": "server",
            "package": shipped_package_field("time"),
            "command": echo_command("/usr/bin/python3", era),
        }
        for era in ERAS
    }
    for name, manifest in {**echo, **others}.items():
        about = {"name": name, "title": name, "description": f"Of the benchmark: {name}.", "category": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps({**about, **manifest}))


async def _remove(installation: Installation) -> None:
    name = installation_name(installation.home)
    engine = DockerEngine(name, guard_image=sandbox_images(Settings()).base)
    try:
        await engine.remove_installation()
    finally:
        await engine.aclose()
