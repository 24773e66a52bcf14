"""What a peer is to the benchmark: a program that is started in a folder of its own and serves MCP on loopback."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.bench.processes import children_of
from tests.bench.wire import Endpoint, http_client, list_tools

START_LIMIT_S = 120.0
_END_LIMIT_S = 10.0
_LOG_TAIL = 2000


class PeerError(Exception):
    """It could not be installed or started, or does not serve the tool; says why."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """The MCP server that all of them stand in front of."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/mcp"


@dataclass(frozen=True, slots=True)
class Running:
    """A product that serves the upstream's tool."""

    name: str
    endpoint: Endpoint
    pids: Callable[[], Sequence[int]]
    """Of all processes that belong to it, at this moment."""
    started_in_s: float
    """From the start of its process to the first `tools/list` that held the tool; registering the server included."""


Start = Callable[[Path, Upstream], AbstractContextManager[Running]]
"""Installs and starts a product in an empty folder, and ends it. Raises: PeerError."""


class PeerProcess:
    """A peer's process, with those that it started, and its log."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._log = folder / "log"
        # Nothing of this process's own settings is to reach a peer, nor does a peer write outside its folder.
        own = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), **environment}
        self._began = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=own, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._began

    def pids(self) -> list[int]:
        return [self._process.pid, *children_of(self._process.pid)]

    def until(self, is_so: Callable[[httpx.Client], bool]) -> None:
        """Ask until it is so. Raises: PeerError, with the end of the log."""
        with http_client() as http:
            while True:
                reason = "not yet"
                try:
                    if is_so(http):
                        return
                except (httpx.HTTPError, AssertionError, ValueError) as error:
                    reason = f"{type(error).__name__}: {error}"
                if self._process.poll() is not None:
                    raise PeerError(f"it exited with {self._process.returncode}: {self._tail()}")
                if time.monotonic() > self._began + START_LIMIT_S:
                    raise PeerError(f"it did not come up in {START_LIMIT_S:g} s ({reason}): {self._tail()}")
                time.sleep(0.05)

    def end(self) -> None:
        """It and all that it started."""
        processes = [psutil.Process(pid) for pid in self.pids()] if self._process.poll() is None else []
        for process in processes:
            _quietly(process.terminate)
        _, alive = psutil.wait_procs(processes, timeout=_END_LIMIT_S)
        for process in alive:
            _quietly(process.kill)
        self._process.wait(timeout=_END_LIMIT_S)

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-_LOG_TAIL:]


@contextmanager
def serving_peer(
    name: str,
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    endpoint: Endpoint,
    *,
    register: Callable[[PeerProcess], None] = lambda process: None,
) -> Iterator[Running]:
    """Start it, `register` the upstream where that takes requests, and wait until its tool is listed."""
    process = PeerProcess(command, folder, environment)
    try:
        register(process)
        process.until(lambda http: bool(echo_tool(http, endpoint)))
        yield Running(name, endpoint, process.pids, process.age_s)
    finally:
        process.end()


def echo_tool(http: httpx.Client, endpoint: Endpoint) -> str:
    """What the upstream's only tool is called here; empty where it is not listed. Raises: httpx.HTTPError."""
    return next((name for name in list_tools(http, endpoint, "legacy") if "echo" in name), "")


def _quietly(action: Callable[[], object]) -> None:
    with suppress(psutil.NoSuchProcess):
        action()
