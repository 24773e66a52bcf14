"""The real agent at a pod's address, without a container around it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from app.sandboxes.planning import control_environment
from tests.waiting import BOUND_S

_PACKAGE = Path(__file__).parents[2] / "sandbox_images" / "workspace"
_CONTROL_TOKEN = "control-token"


@contextmanager
def running_agent(address: str, directory: Path, *, stdio_token: str) -> Iterator[subprocess.Popen[bytes]]:
    """An agent that is configured and listens on its two ports at `address`."""
    options = {
        "--host": address,
        "--mcp-token-file": str(directory / "mcp-token"),
        "--facts-directory": str(directory / "facts"),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "sandgate_agent", *(word for option in options.items() for word in option)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(_PACKAGE), **control_environment(_CONTROL_TOKEN)},
    )
    try:
        _configure(address, stdio_token)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(BOUND_S)


def _configure(address: str, stdio_token: str) -> None:
    body = {"sandboxId": "itest", "accessToken": "token", "stdioToken": stdio_token}
    deadline = time.monotonic() + 2 * BOUND_S
    with httpx.Client(
        base_url=f"http://{address}:49983", headers={"X-Control-Token": _CONTROL_TOKEN}, timeout=BOUND_S
    ) as client:
        while True:
            try:
                assert client.post("/init", json=body).status_code == 204
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the agent did not come up"
                time.sleep(0.02)
            else:
                return
