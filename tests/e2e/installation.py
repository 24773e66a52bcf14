"""A Sandgate of one's own: a home, a port, a server process that can be killed, and clients for it."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import docker
import httpx
import httpx2
from e2b import Sandbox
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from app.engines.docker_engine import DockerEngine
from app.engines.images import image_tags
from app.sandboxes.models import PodSecrets
from app.settings import ROOT, Settings
from app.vault import Vault
from tests.ports import free_port, is_open

START_DEADLINE_S = 60.0
CREATE_TIMEOUT_S = 180.0

Era = Literal["legacy", "auto"]


def wait_until(is_so: Callable[[], bool], instead: Callable[[], object], *, within_s: float = 60.0) -> None:
    """Ask again and again; after the bound fail, with what is found `instead`."""
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, instead()
        time.sleep(0.1)


def wait_until_open(host: str, port: int) -> None:
    wait_until(lambda: is_open(host, port), lambda: f"nothing listens at {host}:{port}")


@dataclass
class Installation:
    home: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    engine_url: str | None = None
    """As `DOCKER_HOST`; None for the engine that the tests use themselves."""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    @property
    def pid(self) -> int:
        """Of the server, which has been started."""
        assert self._process is not None
        return self._process.pid

    @property
    def key(self) -> str:
        return (self.home / "api-key").read_text()

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "SANDGATE_HOME": str(self.home),
            "SANDGATE_PORT": str(self.port),
            "SANDGATE_POOL": "base=0,mcp-gateway=0",
            "SANDGATE_SERVER_START_TIMEOUT_S": "120",  # a dozen at once on a busy machine may need more than by default
            "PYTHONDONTWRITEBYTECODE": "",  # what is started again and again need not compile itself each time
        }
        engine = {} if self.engine_url is None else {"DOCKER_HOST": self.engine_url}
        return {**os.environ, **own, **engine, **self.settings}

    @property
    def sdk_environment(self) -> dict[str, str]:
        urls = dict.fromkeys(("E2B_API_URL", "E2B_SANDBOX_URL", "E2B_VOLUME_API_URL"), self.url)
        return {"E2B_API_KEY": self.key, **urls}

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """`sandgate` with these arguments, and with these settings besides."""
        command = [str(Path(sys.executable).with_name("sandgate")), *arguments]
        environment = {**self.environment, "COLUMNS": "200", **settings}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    def start(self) -> None:
        """Returns once requests are served."""
        self.home.mkdir(parents=True, exist_ok=True)
        command = [str(Path(sys.executable).with_name("sandgate")), "serve"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            try:
                httpx.get(f"{self.url}/health", trust_env=False)
            except httpx.TransportError:
                assert self._process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """As `kill -9` does."""
        self._end(signal.SIGKILL)

    def stop(self, within_s: float = 30) -> None:
        self._end(signal.SIGTERM, within_s)

    def _end(self, number: signal.Signals, within_s: float = 30) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=within_s)
            self._process = None

    def http(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, headers={"X-API-KEY": self.key}, timeout=CREATE_TIMEOUT_S, trust_env=False
        )

    def create(self, **body: object) -> dict[str, Any]:
        with self.http() as http:
            answer = http.post("/v2/sandboxes", json={"timeout": 600, **body})
        assert answer.status_code == 201, f"{answer.text}\n{self.log.read_text()[-3000:]}"
        return dict(answer.json())

    def servers(self, sandbox_id: str) -> dict[str, Any]:
        """What becomes of a sandbox's MCP servers, once none of them is starting."""
        found: dict[str, Any] = {}

        def have_settled() -> bool:
            with self.http() as http:
                found.update(http.get(f"/sandboxes/{sandbox_id}").json()["mcp"]["servers"])
            return all(server["state"] != "starting" for server in found.values())

        wait_until(have_settled, lambda: found, within_s=CREATE_TIMEOUT_S)
        return found

    def states(self, sandbox_id: str) -> dict[str, str]:
        """The same, without why."""
        return {name: server["state"] for name, server in self.servers(sandbox_id).items()}

    def delete(self, sandbox_id: str) -> None:
        with self.http() as http:
            http.delete(f"/sandboxes/{sandbox_id}")

    def sandboxes(self) -> list[str]:
        """Ids of the running ones."""
        with self.http() as http:
            return [sandbox["sandboxID"] for sandbox in http.get("/v2/sandboxes").json()]

    def sdk(self, sandbox_id: str) -> Sandbox:
        return Sandbox.connect(sandbox_id, api_key=self.key, api_url=self.url, sandbox_url=self.url)

    def containers(self, **labels: str) -> list[str]:
        """Names of the pods' containers that the engine has of this installation, running or not."""
        return [str(container["Names"][0]).lstrip("/") for container in self._containers(labels)]

    def running_containers(self) -> list[str]:
        """The same, without those that do not run."""
        found = self._containers({})
        return [str(container["Names"][0]).lstrip("/") for container in found if container["State"] == "running"]

    def _containers(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        client = docker.APIClient(self.engine_url)
        try:
            found = client.containers(all=True, filters=self._filters(labels))
        finally:
            client.close()
        return [container for container in found if "sandgate.pod" in container["Labels"]]

    def container(self, sandbox_id: str, role: str) -> str:
        """Name of one container of a running sandbox."""
        database = sqlite3.connect(self.home / "sandgate.db")
        try:
            ((pod_id,),) = database.execute("SELECT id FROM pods WHERE sandbox_id = ?", [sandbox_id]).fetchall()
        finally:
            database.close()
        return f"sandgate-{pod_id}-{role}"

    def control_token(self, sandbox_id: str, part: Literal["agent", "gateway"]) -> str:
        """What the control plane shows a pod's agent or gateway, and nobody else has."""
        query = "SELECT secrets_encrypted FROM pods WHERE sandbox_id = ?"
        database = sqlite3.connect(self.home / "sandgate.db")
        try:
            ((encrypted,),) = database.execute(query, [sandbox_id]).fetchall()
        finally:
            database.close()
        tokens = PodSecrets(**cast(dict[str, str], Vault(self.home / "encryption-key").decrypt(encrypted)))
        return tokens.agent_token if part == "agent" else tokens.gateway_token

    def volumes(self) -> list[str]:
        client = docker.APIClient(self.engine_url)
        try:
            return [volume["Name"] for volume in client.volumes(filters=self._filters({}))["Volumes"] or ()]
        finally:
            client.close()

    def _filters(self, labels: Mapping[str, str]) -> dict[str, list[str]]:
        wanted = {"sandgate.installation": (self.home / "installation").read_text(), **labels}
        return {"label": [f"{key}={value}" for key, value in wanted.items()]}

    def wait_until_nothing_runs(self) -> None:
        """Nothing of a pod is left on the engine, volumes included."""
        wait_until(lambda: not self.containers() and not self.volumes(), lambda: [*self.containers(), *self.volumes()])

    def remove(self) -> None:
        """Stop the server and take everything of this installation off the engine, whatever state it is in."""
        self.kill()
        asyncio.run(self._remove())

    def remove_images(self) -> None:
        """Templates, layers of their builds, and snapshots."""
        client = docker.APIClient()
        prefix = f"sandgate-{(self.home / 'installation').read_text()}/"
        # As the engine lists them: `docker.models` asks for each by itself, and others remove theirs meanwhile.
        tags = [tag for image in client.images() for tag in image["RepoTags"] or ()]
        for tag in [tag for tag in tags if tag.startswith(prefix)]:
            client.remove_image(tag)
        client.close()

    async def _remove(self) -> None:
        settings = Settings()
        tags = image_tags(ROOT / "sandbox_images", base_image=settings.base_image, ca_bundle=settings.ca_bundle)
        name = (self.home / "installation").read_text()
        engine = DockerEngine(name, guard_image=tags.base, base_url=self.engine_url)
        try:
            await engine.remove_installation()
        finally:
            await engine.aclose()


@asynccontextmanager
async def mcp_client(sandbox: Mapping[str, Any], era: Era = "auto") -> AsyncIterator[Client]:
    """The official client at the URL and with the token that a create answered."""
    headers = {"Authorization": f"Bearer {sandbox['mcp']['token']}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(sandbox["mcp"]["url"], http_client=http), mode=era) as client,
    ):
        yield client


async def call(client: Client, tool: str, **arguments: object) -> str:
    """All text of a tool's result, which must not be an error."""
    result = await client.call_tool(tool, arguments)
    text = "\n".join(getattr(block, "text", "") for block in result.content)
    assert not result.is_error, text
    return text
