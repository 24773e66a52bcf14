"""Serves an ASGI application of the bench, by the server that edge and gateway use, in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.settings import ROOT
from tests.ports import free_port

_START_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Serving:
    host: str
    port: int
    pid: int


@contextmanager
def serving(application: str, host: str = "127.0.0.1") -> Iterator[Serving]:
    """`application` is `<module>:<name>`."""
    port = free_port(host)
    options = ["--host", host, "--port", str(port), "--http", "httptools", "--loop", "uvloop", "--lifespan", "off"]
    quiet = ["--no-access-log", "--log-level", "warning", "--no-server-header", "--no-date-header"]
    server = subprocess.Popen([sys.executable, "-m", "uvicorn", application, *options, *quiet], cwd=ROOT)
    try:
        _wait_until_listening(host, port)
        yield Serving(host, port, server.pid)
    finally:
        server.terminate()
        server.wait(timeout=10)


def _wait_until_listening(host: str, port: int) -> None:
    give_up_at = time.monotonic() + _START_DEADLINE_S
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.02)
        else:
            return
