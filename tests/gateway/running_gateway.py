"""A real gateway process for tests, and the servers to put behind it."""

import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from app.sandboxes.planning import control_environment
from tests.conformance.processes import START_S, ProcessError, first_line, running, tail
from tests.ports import free_port

FIXTURES = Path(__file__).parents[1] / "fixtures"
READY_S = 30
TOKEN = "token-of-the-first-client"
PACKAGE_PATH = str(Path(__file__).parents[2] / "sandbox_images" / "gateway")


@dataclass
class RunningGateway:
    """The process, its addresses, and the control plane's verbs."""

    url: str
    control: httpx.Client
    pid: int
    folder: Path
    bridge_socket: Path
    tokens: list[str] = field(default_factory=lambda: [TOKEN])

    def configure(self, servers: Mapping[str, Mapping[str, Any]], **options: Any) -> dict[str, Any]:
        """Replace the configuration; `servers` maps names to transports, or to whole entries with a transport in them.
        Returns the status once all have settled."""
        self.put_config(servers, **options)
        return self.status(READY_S)

    def put_config(self, servers: Mapping[str, Mapping[str, Any]], **options: Any) -> dict[str, Any]:
        """Server name -> its status as the answer has it."""
        start_timeout = options.pop("start_timeout_s", READY_S)
        entries = [
            {"name": name, "startTimeoutS": start_timeout, **(given if "transport" in given else {"transport": given})}
            for name, given in servers.items()
        ]
        body = {"tokens": self.tokens, "naming": "auto", "stdioDoor": None, "servers": entries, **options}
        return _by_name(self.control.put("/config", json=body))

    def status(self, wait_s: float = 0, **query: str) -> dict[str, Any]:
        """Server name -> its status."""
        return _by_name(self.control.get("/status", params={"wait": wait_s, **query}))

    def lists(self, server: str) -> dict[str, Any]:
        """What the server offers, as the control plane remembers it."""
        answer: dict[str, Any] = self.control.get("/lists", params={"server": server}).raise_for_status().json()
        return answer

    @property
    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    @asynccontextmanager
    async def client(
        self, mode: Literal["legacy", "auto"] = "auto", token: str = TOKEN, **callbacks: Any
    ) -> AsyncIterator[Client]:
        """The official client: `legacy` starts with initialize, `auto` finds out that the gateway is modern."""
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            httpx2.AsyncClient(headers=headers, trust_env=False, timeout=60) as http,
            Client(streamable_http_client(self.url, http_client=http), mode=mode, **callbacks) as client,
        ):
            yield client


@contextmanager
def running_gateway(folder: Path, server_users: str = "same") -> Iterator[RunningGateway]:
    """Yields a gateway that listens and has no servers. Logs and data are in `folder`. Servers run as the gateway's own
    user unless told otherwise: another could not read the checkout on every machine."""
    log, token = folder / "gateway.log", secrets.token_hex(8)
    mcp_port, control_port, bridge_socket = free_port(), free_port(), folder / "bridges.sock"
    command = [sys.executable, "-m", "sandgate_gateway", "--host", "127.0.0.1", "--mcp-port", str(mcp_port)]
    command += ["--control-port", str(control_port), "--data-dir", str(folder / "data"), "--server-users", server_users]
    command += ["--bridge-socket", str(bridge_socket)]
    with (
        running(command, log=log, env={"PYTHONPATH": PACKAGE_PATH, **control_environment(token)}) as process,
        httpx.Client(
            base_url=f"http://127.0.0.1:{control_port}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=READY_S + 10,
            trust_env=False,
        ) as control,
    ):
        deadline = time.monotonic() + START_S
        while True:
            try:
                control.get("/health").raise_for_status()
                break
            except httpx.TransportError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ProcessError(f"the gateway does not answer: {error}\n{tail(log)}") from None
                time.sleep(0.02)
        yield RunningGateway(f"http://127.0.0.1:{mcp_port}/mcp", control, process.pid, folder, bridge_socket)


def stdio(command: Sequence[str], env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A stdio transport that finds this checkout's packages."""
    paths = os.pathsep.join([str(FIXTURES.parents[1]), PACKAGE_PATH])
    return {"type": "stdio", "command": list(command), "env": {"PYTHONPATH": paths, **(env or {})}}


def echo(env: Mapping[str, str] | None = None) -> dict[str, Any]:
    return stdio([sys.executable, str(FIXTURES / "echo_server.py"), "--stdio"], env)


def bad(way: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    return stdio([sys.executable, str(FIXTURES / "bad_servers.py"), way], env)


def scripted(**script: Any) -> dict[str, Any]:
    """tests/gateway/scripted_server.py with this script."""
    return stdio([sys.executable, str(Path(__file__).with_name("scripted_server.py")), json.dumps(script)])


def held_up(script: dict[str, Any], gate: Path) -> dict[str, Any]:
    """A scripted server that starts only when the file `gate` exists."""
    wait = f'while [ ! -e {gate} ]; do sleep 0.02; done; exec "$@"'
    transport = scripted(**script)
    return {**transport, "command": ["/bin/sh", "-c", wait, "sh", *transport["command"]]}


def conformance(era: str) -> dict[str, Any]:
    return stdio([sys.executable, "-m", "tests.fixtures.conformance_server", "--stdio", "--era", era])


@contextmanager
def conformance_over_http(folder: Path, era: str) -> Iterator[dict[str, Any]]:
    """Yields the transport of a conformance fixture that speaks this era over HTTP."""
    log = folder / f"fixture-{era}.log"
    command = [sys.executable, "-m", "tests.fixtures.conformance_server", "--http", "0", "--era", era]
    with running(command, log=log) as process:
        yield {"type": "http", "url": first_line(process, log), "headers": {}, "allowPrivate": True}


@contextmanager
def echo_over_http(folder: Path, address: str = "127.0.0.1:0", *, old: bool = False) -> Iterator[str]:
    """Yields the address of an echo server over HTTP; an `old` one speaks HTTP+SSE."""
    command = [sys.executable, str(FIXTURES / "echo_server.py"), "--sse" if old else "--http", address]
    with running(command, log=folder / "echo.log") as process:
        yield first_line(process, folder / "echo.log")


def _by_name(answer: httpx.Response) -> dict[str, Any]:
    return {server["name"]: server for server in answer.raise_for_status().json()["servers"]}
