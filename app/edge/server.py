"""The HTTP server that everything is served by: the control plane, its TLS listener, and edge workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from app.edge.http_protocol import HttpProtocol

_KEEP_ALIVE_S = 310
"""E2B's SDKs keep idle connections for up to 300 s; the server must not be the one to close them first."""
SHUTDOWN_S = 5
STREAMS_END_S = 1.0
"""How long after the beginning of a shutdown streams are broken off, which have no end of their own."""


def server_config(app: ASGIApp, **more: Any) -> uvicorn.Config:
    """`more` is what uvicorn.Config takes besides."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=HttpProtocol,
        ws="websockets-sansio",
        ws_ping_timeout=None,  # an answer may wait behind an upload to a slow pod for as long as that lasts
        proxy_headers=False,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
        **more,
    )


class EmbeddedServer(uvicorn.Server):
    """Leaves signals to whoever runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
