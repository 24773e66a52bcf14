"""The least an ASGI application can do: what the load generator gets out of it shows where the generator's limit is."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from tests.e2e.installation import free_port

_START_DEADLINE_S = 30.0
_BODY = b'{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"' + b"x" * 50 + b'"}]}}'
_HEADERS = [(b"content-length", str(len(_BODY)).encode()), (b"content-type", b"application/json")]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the request's body, as the edge and the gateway have to."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _BODY})


@dataclass(frozen=True, slots=True)
class Serving:
    port: int
    pid: int


@contextmanager
def serving() -> Iterator[Serving]:
    """The application, served by the server that the edge and the gateway use, in a process of its own."""
    port = free_port()
    options = ["--port", str(port), "--http", "httptools", "--loop", "uvloop", "--lifespan", "off"]
    quiet = ["--no-access-log", "--log-level", "warning", "--no-server-header", "--no-date-header"]
    server = subprocess.Popen([sys.executable, "-m", "uvicorn", f"{__name__}:app", *options, *quiet])
    try:
        _wait_until_listening(port)
        yield Serving(port, server.pid)
    finally:
        server.terminate()
        server.wait(timeout=10)


def _wait_until_listening(port: int) -> None:
    give_up_at = time.monotonic() + _START_DEADLINE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.02)
        else:
            return
