"""What surrounds a Sandgate in the end-to-end tests: remote servers, an image, a git host, the operator's catalog."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import psutil
import pytest

from app.engines.images import image_tags
from app.settings import ROOT, Settings
from tests import npm
from tests.e2e.installation import Installation, wait_until_open
from tests.locks import held
from tests.ports import free_port
from tests.shipped_packages import shipped_package_field
from tests.waiting import BOUND_S

FIXTURES = ROOT / "tests" / "fixtures"
ECHO_IMAGE = "sandgate-test/echo:1"
SECRET = "sesame-open-1234567890"


ECHO_DOCKERFILE = """
ARG FROM_IMAGE
FROM ${FROM_IMAGE}
RUN python3 -m venv /opt/echo && /opt/echo/bin/pip install --quiet mcp==2.3.0
COPY echo_server.py /opt/echo/server.py
USER nobody
ENTRYPOINT ["/opt/echo/bin/python", "/opt/echo/server.py"]
CMD ["--stdio"]
"""

ANY_PACKAGE = shipped_package_field("time")
"""For programs of the image, which come in no package."""
PROBE = ["/usr/bin/python3", "-c", (FIXTURES / "probe_server.py").read_text()]

MANIFESTS: dict[str, dict[str, object]] = {
    "echo-image": {
        "type": "server",
        "image": ECHO_IMAGE,
        "secrets": [
            {"name": "echo-image.api_key", "env": "ECHO_API_KEY", "description": "Any text.", "required": True}
        ],
    },
    "echo-remote": {
        "type": "remote",
        "remote": {
            "url": "http://{host}:{port}/mcp",
            "transport_type": "streamable-http",
            "allowPrivate": True,
            "headers": {"Authorization": "Bearer ${ECHO_TOKEN}"},
        },
        "secrets": [{"name": "echo-remote.token", "env": "ECHO_TOKEN", "description": "Any text.", "required": True}],
    },
    "fetch-private": {
        "type": "server",
        "package": shipped_package_field("fetch"),
        "command": ["mcp-server-fetch", "--allow-private-ips", "--ignore-robots-txt"],
    },
    "missing-image": {"type": "server", "image": "sandgate-test/absent:1"},
    "exits": {
        "type": "server",
        "package": ANY_PACKAGE,
        "command": ["/bin/sh", "-c", 'echo "cannot go on with $(printenv EXITS_API_KEY)" >&2; exit 3'],
        "secrets": [{"name": "exits.api_key", "env": "EXITS_API_KEY", "description": "Any text.", "required": True}],
    },
    "mute": {"type": "server", "package": ANY_PACKAGE, "command": ["/bin/sleep", "600"], "startTimeoutS": 60},
    "probe": {"type": "server", "package": ANY_PACKAGE, "command": PROBE},
    "probe-with-secret": {
        "type": "server",
        "package": ANY_PACKAGE,
        "command": PROBE,
        "secrets": [
            {"name": "probe-with-secret.api_key", "env": "PROBE_API_KEY", "description": "Any text.", "required": True}
        ],
    },
    "silent": {
        "type": "server",
        "package": ANY_PACKAGE,
        "command": ["/bin/sleep", "600"],
        "startTimeoutS": 2,
    },
}


@dataclass(frozen=True)
class Surroundings:
    """Things at an address of this host that sandboxes are allowed to reach."""

    host: str
    echo_port: int
    git_port: int
    web_port: int
    """Lists the folder of the repositories."""


@pytest.fixture(scope="session")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surroundings]:
    (host,) = (a.address for a in psutil.net_if_addrs()["docker0"] if a.family == socket.AF_INET)
    found = Surroundings(host, free_port(host), free_port(host), free_port(host))
    repositories = make_repository(tmp_path_factory.mktemp("repositories"))
    echo = [sys.executable, str(FIXTURES / "echo_server.py"), "--http", f"{host}:{found.echo_port}"]
    git = ["git", "daemon", f"--listen={host}", f"--port={found.git_port}", f"--base-path={repositories}"]
    web = [sys.executable, "-m", "http.server", "--bind", host, "--directory", str(repositories), str(found.web_port)]
    processes = [
        subprocess.Popen(echo, stdout=subprocess.DEVNULL),
        subprocess.Popen(web, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
        subprocess.Popen([*git, "--export-all", "--reuseaddr", "--log-destination=none", str(repositories)]),
    ]
    try:
        for port in (found.echo_port, found.git_port, found.web_port):
            wait_until_open(host, port)
        yield found
    finally:
        for process in processes:
            process.terminate()
            process.wait(timeout=BOUND_S)


def make_repository(base: Path) -> Path:
    """`acme/hello`, as a custom server's repository is."""
    repository = base / "acme" / "hello"
    repository.mkdir(parents=True)
    (repository / "server.py").write_bytes((FIXTURES / "hello_server.py").read_bytes())
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    for command in (["init", "--quiet"], ["add", "."], [*identity, "commit", "--quiet", "-m", "First"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    return base


@pytest.fixture(scope="session")
def echo_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    settings = Settings()
    base = image_tags(ROOT / "sandbox_images", base_image=settings.base_image, ca_bundle=settings.ca_bundle).base
    context = tmp_path_factory.mktemp("echo")
    (context / "Dockerfile").write_text(ECHO_DOCKERFILE)
    (context / "echo_server.py").write_bytes((FIXTURES / "echo_server.py").read_bytes())
    client = docker.from_env()
    client.images.build(path=str(context), tag=ECHO_IMAGE, buildargs={"FROM_IMAGE": base}, rm=True)
    client.close()
    return ECHO_IMAGE


@pytest.fixture(scope="session")
def installation(
    tmp_path_factory: pytest.TempPathFactory, surroundings: Surroundings, echo_image: str
) -> Iterator[Installation]:
    """One for all tests that do no harm to it. At the end nothing of it may be left on the engine."""
    home = tmp_path_factory.mktemp("home")
    write_manifests(home, surroundings)
    installation = Installation(home, settings_for(surroundings))
    installation.start()
    yield installation
    for sandbox_id in installation.sandboxes():
        installation.delete(sandbox_id)
    installation.wait_until_nothing_runs()
    installation.stop()
    installation.remove()


@pytest.fixture
def own_installation(tmp_path: Path, surroundings: Surroundings, echo_image: str) -> Iterator[Installation]:
    """For a test that does harm to it. Not started yet."""
    home = tmp_path / "home"
    write_manifests(home, surroundings)
    installation = Installation(home, settings_for(surroundings))
    yield installation
    if (home / "installation").exists():
        installation.remove()


def settings_for(surroundings: Surroundings) -> dict[str, str]:
    host = surroundings.host
    return {
        "SANDGATE_EGRESS_ALLOW": ", ".join(
            f"{host}:{port}" for port in (surroundings.echo_port, surroundings.git_port, surroundings.web_port)
        ),
        "SANDGATE_GITHUB_URL": f"git://{host}:{surroundings.git_port}",
    }


def write_manifests(home: Path, surroundings: Surroundings) -> None:
    """JSON is YAML."""
    folder = home / "catalog" / "servers"
    folder.mkdir(parents=True)
    for name, manifest in MANIFESTS.items():
        about = {"name": name, "title": name, "description": f"For tests: {name}.", "category": "test"}
        text = json.dumps({**about, **manifest})
        text = text.replace("{host}", surroundings.host).replace("{port}", str(surroundings.echo_port))
        (folder / f"{name}.yaml").write_text(text)


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """What package-lock.json names, installed when it has changed."""
    folder = ROOT / "tests" / "e2e"
    installed = folder / "node_modules"
    finished = installed / ".package-lock.json"  # npm writes it last
    with held(folder):
        if not finished.exists() or finished.stat().st_mtime < (folder / "package-lock.json").stat().st_mtime:
            npm.install(folder)
    return installed


@pytest.fixture(scope="session")
def claude(node_modules: Path) -> Path:
    """Claude Code, of the version in package-lock.json."""
    return node_modules / ".bin" / "claude"
