"""What every measurement stands on: an installation of its own, with the bench's own servers in its catalog."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import psutil

from app.engines.docker_engine import DockerEngine
from app.main import installation_name, sandbox_images
from app.settings import Settings
from tests.bench.processes import SandboxProcesses
from tests.bench.wire import Endpoint, Era
from tests.e2e.installation import Installation
from tests.shipped_packages import shipped_package_field

_ECHO_SERVER = Path(__file__).with_name("echo_server.py")

ERAS: tuple[Era, ...] = ("legacy", "modern")
ECHO_SERVERS: Mapping[str, Mapping[str, Any]] = {"benchLegacy": {}, "benchModern": {}}
"""As in the body of a create request."""


@dataclass(frozen=True, slots=True)
class Bed:
    installation: Installation
    client: docker.APIClient

    @property
    def control_plane(self) -> int:
        """Process id of the server, which holds the edge."""
        return next(child.pid for child in psutil.Process().children() if "serve" in child.cmdline())

    @contextmanager
    def sandbox(self, **body: object) -> Iterator[dict[str, Any]]:
        """The answer to a create request. The sandbox is gone at the end, containers included."""
        created = self.installation.create(**body)
        try:
            yield created
        finally:
            self.installation.delete(created["sandboxID"])
            self.installation.wait_until_nothing_runs()

    def processes_of(self, sandbox: Mapping[str, Any]) -> SandboxProcesses:
        return SandboxProcesses(self.client, sandbox["sandboxID"])

    def edge(self, sandbox: Mapping[str, Any]) -> Endpoint:
        """The URL that the create request answered."""
        path = f"/sandboxes/{sandbox['sandboxID']}/mcp"
        return Endpoint("127.0.0.1", self.installation.port, path, sandbox["mcp"]["token"])

    def gateway(self, sandbox: Mapping[str, Any]) -> Endpoint:
        """The gateway itself, without the edge before it."""
        return Endpoint(self.processes_of(sandbox).address, 50005, "/mcp", sandbox["mcp"]["token"])


@contextmanager
def installed() -> Iterator[Bed]:
    """Nothing of it is left at the end, on the engine or on disk; the images stay."""
    client = docker.APIClient()
    try:
        with tempfile.TemporaryDirectory(prefix="sandgate-bench-") as home:
            _write_manifests(Path(home))
            installation = Installation(Path(home))
            try:
                installation.start()
                yield Bed(installation, client)
            finally:
                installation.stop()
                asyncio.run(_remove(installation))
    finally:
        client.close()


def echo_command(python: str, era: Era) -> list[str]:
    return [python, "-c", _ECHO_SERVER.read_text(), era]


def _write_manifests(home: Path) -> None:
    """JSON is YAML. The package is there for its name: the bench's server is brought along in its command."""
    folder = home / "catalog" / "servers"
    folder.mkdir(parents=True)
    for era in ERAS:
        name = f"bench-{era}"
        manifest = {
            "name": name,
            "title": name,
            "description": f"Of the benchmark: gives back what it got, {era} era.",
            "category": "test",
            "type": "server",
            "package": shipped_package_field("time"),
            "command": echo_command("/usr/bin/python3", era),
        }
        (folder / f"{name}.yaml").write_text(json.dumps(manifest))


async def _remove(installation: Installation) -> None:
    name = installation_name(installation.home)
    engine = DockerEngine(name, guard_image=sandbox_images(Settings()).base)
    try:
        await engine.remove_installation()
    finally:
        await engine.aclose()
