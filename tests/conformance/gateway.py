"""The gateway as a process of its own, configured with one server over its control port (docs/ARCHITECTURE.md 6.4)."""

import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx

from tests.conformance.processes import REPOSITORY, START_S, ProcessError, fixture_command, free_port, running, tail

READY_S = 30


@dataclass(frozen=True)
class Gateway:
    url: str
    """Where MCP clients connect."""
    token: str
    """What they send as bearer."""


def http_upstream(url: str) -> Mapping[str, Any]:
    return {"type": "http", "url": url, "headers": {}}


def stdio_upstream(era: str = "both") -> Mapping[str, Any]:
    """The fixture, started by the gateway itself."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
    return {"type": "stdio", "command": fixture_command("--stdio", "--era", era), "env": env}


@contextmanager
def gateway_in_front_of(transport: Mapping[str, Any], folder: Path) -> Iterator[Gateway]:
    """Yields once the one server behind it is ready. Logs and data go to `folder`.

    Raises: ProcessError when the gateway does not start, or the server behind it does not.
    """
    log = folder / "gateway.log"
    control_token, token = secrets.token_hex(16), secrets.token_hex(16)
    token_file = folder / "control-token"
    token_file.write_text(control_token)
    mcp_port, control_port = free_port(), free_port()
    command = [sys.executable, "-m", "sandgate_gateway", "--mcp-port", str(mcp_port), "--control-port"]
    command += [str(control_port), "--control-token-file", str(token_file), "--data-dir", str(folder / "data")]
    command += ["--server-users", "same"]  # another uid could not read the checkout or the environment of its owner
    pythonpath = str(REPOSITORY / "sandbox_images" / "gateway")
    with (
        running(command, log=log, env={"PYTHONPATH": pythonpath}) as process,
        httpx.Client(
            base_url=f"http://127.0.0.1:{control_port}",
            headers={"Authorization": f"Bearer {control_token}"},
            timeout=READY_S + 10,
            trust_env=False,
        ) as control,
    ):
        _wait_until_it_listens(control, process, log)
        server = {"name": "fixture", "startTimeoutS": READY_S, "transport": transport}
        # One server and naming "auto": the names stay as the suite knows them.
        config = {"tokens": [token], "naming": "auto", "stdioDoor": None, "servers": [server]}
        control.put("/config", json=config).raise_for_status()
        status = control.get("/status", params={"wait": READY_S}).raise_for_status().json()
        if [each["state"] for each in status["servers"]] != ["ready"]:
            raise ProcessError(f"the server behind the gateway is not ready: {status}\n{tail(log)}")
        yield Gateway(url=f"http://127.0.0.1:{mcp_port}/mcp", token=token)


def _wait_until_it_listens(control: httpx.Client, process: Popen[str], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            control.get("/status").raise_for_status()
            return
        except httpx.TransportError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise ProcessError(f"the gateway does not answer: {error}\n{tail(log)}") from None
            time.sleep(0.05)
