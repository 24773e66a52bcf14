"""Starts the real agent for tests: on free ports, with accounts of its own and nothing outside a temporary directory.

The agent gets a mount namespace in which /etc/passwd and /etc/group are files of the test, so that there is a user with
a home to write into and one without rights there, and in which a small tmpfs can be full without harm.
"""

import asyncio
import base64
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from e2b import AsyncSandbox, Sandbox
from e2b.connection_config import ConnectionConfig
from packaging.version import Version

from app.sandboxes.planning import control_environment
from tests.ports import free_port
from tests.waiting import BOUND_S

PACKAGE_DIRECTORY = Path(__file__).parents[2] / "sandbox_images" / "workspace"
CONTROL_TOKEN = "control-token-of-the-test"
ACCESS_TOKEN = "access-token-of-the-test"
STDIO_TOKEN = "stdio-token-of-the-test"
MCP_TOKEN = "mcp-token-of-the-test"
ENVD_VERSION = "0.6.13"

USER_UID = 61000
OTHER_UID = 61001
SHARED_GID = 61100
"""A group that `user` belongs to beside its own."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class RunningAgent:
    process: subprocess.Popen[bytes]
    directory: Path
    """The test's own; `home` in it is the home of `user`, `small` a tmpfs of 1 MiB and `plain` a file system
    without extended attributes, which only the agent sees."""
    port: int
    door_port: int
    headers: dict[str, str] = field(default_factory=lambda: {"X-Access-Token": ACCESS_TOKEN})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def home(self) -> Path:
        return self.directory / "home"

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, **{"headers": self.headers, "timeout": 30, **options})

    def async_client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, **{"headers": self.headers, "timeout": 30, **options})

    def initialise(self, **fields: Any) -> httpx.Response:
        body = {
            "sandboxId": "itestsandbox",
            "templateId": "base",
            "teamId": "team_test",
            "accessToken": ACCESS_TOKEN,
            "stdioToken": STDIO_TOKEN,
            "mcpToken": MCP_TOKEN,
            "envs": {"OF_THE_SANDBOX": "yes"},
            **fields,
        }
        with self.client(headers={"X-Control-Token": CONTROL_TOKEN}) as client:
            return client.post("/init", json=body)

    def sandbox(self) -> Sandbox:
        """The official SDK's sandbox, as `create` would have made it, without a control plane."""
        return Sandbox(**self._sandbox_options())

    def async_sandbox(self) -> AsyncSandbox:
        return AsyncSandbox(**self._sandbox_options())

    def _sandbox_options(self) -> Any:
        return {
            "sandbox_id": "itestsandbox",
            "envd_version": Version(ENVD_VERSION),
            "envd_access_token": ACCESS_TOKEN,
            "sandbox_domain": None,
            "connection_config": ConnectionConfig(
                api_key="e2b_" + "0" * 40, sandbox_url=self.url, extra_sandbox_headers=self.headers
            ),
        }

    async def open_door(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.door_port)


def basic(user: str) -> dict[str, str]:
    """The header that names a user."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:".encode()).decode()}


def what_is_left_of(group: object) -> str:
    """A shell line that tells the processes of a group that go on living, after its kill."""
    # Killed children of a killed parent are zombies until the container's init has collected them.
    living = f"ps -o stat=,args= -g {group} | grep -v ^Z"
    # A process may be seen a moment longer than the kill takes; ten seconds are no moment.
    return f'for each in $(seq 100); do left=$({living}); [ -z "$left" ] && break; sleep 0.1; done; printf %s "$left"'


@contextmanager
def running_agent(*, volume: str | None = None) -> Iterator[RunningAgent]:
    """An agent that listens and is not initialised yet; of a workspace, or of that folder of its directory."""
    # Not pytest's own directory, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="sandgate-agent-") as name, _running_in(Path(name), volume) as agent:
        yield agent


@contextmanager
def _running_in(directory: Path, volume: str | None) -> Iterator[RunningAgent]:
    _make_accounts(directory)
    port, door_port = free_port(), free_port()
    script = (
        'mount --bind "$0/passwd" /etc/passwd && mount --bind "$0/group" /etc/group'
        ' && mount -t tmpfs -o size=1m,mode=1777 none "$0/small"'
        ' && mount -t ramfs -o mode=1777 none "$0/plain" && exec "$@"'
    )
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(directory)]
    options = [
        sys.executable,
        *("-m", "sandgate_agent", "--host", "127.0.0.1", "--port", str(port), "--door-port", str(door_port)),
        *("--mcp-token-file", str(directory / "mcp-gateway" / ".token")),
        *("--facts-directory", str(directory / "facts")),
        *(() if volume is None else ("--volume", str(directory / volume))),
    ]
    log = directory / "agent.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *options],
            stdout=output,
            stderr=output,
            env={"PATH": _PATH, "PYTHONPATH": str(PACKAGE_DIRECTORY), **control_environment(CONTROL_TOKEN)},
        )
    try:
        _wait_until_healthy(process, port, log)
        yield RunningAgent(process, directory, port, door_port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=BOUND_S)


def _make_accounts(directory: Path) -> None:
    directory.chmod(0o755)
    home = directory / "home"
    home.mkdir()
    os.chown(home, USER_UID, USER_UID)
    for name in "small", "plain":
        (directory / name).mkdir()
    (directory / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/bash\n"
        f"user:x:{USER_UID}:{USER_UID}::{home}:/bin/bash\n"
        f"other:x:{OTHER_UID}:{OTHER_UID}::/nonexistent:/bin/sh\n"
    )
    (directory / "group").write_text(
        f"root:x:0:\nuser:x:{USER_UID}:\nother:x:{OTHER_UID}:\nshared:x:{SHARED_GID}:user\n"
    )


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=BOUND_S).status_code == 204:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise AssertionError(f"the agent did not come up:\n{log.read_text()}")
