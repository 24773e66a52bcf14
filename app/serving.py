"""The server's process: what it takes before the application can be served, and how it says that it is."""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from app.edge.edge import Edge
from app.edge.server import STREAMS_END_S, server_config
from app.errors import SandgateError
from app.home import home_locked
from app.logs import configure_logging
from app.main import check_start, make_app, public_url
from app.settings import Settings, read_settings

if TYPE_CHECKING:
    from app.edge.workers import EdgeWorkers

_BACKLOG = 2048
"""Connections that may wait to be accepted; uvicorn's own."""


def serve() -> None:
    """Serve the API and sandbox traffic until told to stop. Raises: SandgateError."""
    settings = read_settings()
    with home_locked(settings.home):
        configure_logging()
        _raise_file_limit()
        # Before anything of a running one is touched, and before the start, whose failures uvicorn tells as tracebacks.
        listener = _listen(settings.host, settings.port, "SANDGATE_PORT")
        if settings.tls_port is not None:
            _listen(settings.host, settings.tls_port, "SANDGATE_TLS_PORT").close()
        asyncio.run(check_start(settings))
        if settings.edge_workers:
            listener.close()  # it has shown that nobody else has the port, which sharing it would hide
            _serve_with_workers(settings)
        else:
            edge = make_app(settings)
            _Server(server_config(edge), settings, edge).run(sockets=[listener])


def _serve_with_workers(settings: Settings) -> None:
    # Whoever has no workers does not wait for what only they need.
    from app.edge.relay import FromWorkers  # noqa: PLC0415 - see above
    from app.edge.workers import EdgeWorkers  # noqa: PLC0415 - see above

    listeners = [
        _listen(settings.host, settings.port, "SANDGATE_PORT", shared=True) for _ in range(settings.edge_workers)
    ]
    workers = EdgeWorkers(listeners, settings.home, sandbox_domain=settings.sandbox_domain)
    edge = make_app(settings, workers)
    _Server(server_config(FromWorkers(edge)), settings, edge, workers).run(sockets=[workers.listen()])


def _raise_file_limit() -> None:
    """Shells start programs with 1,024 files; each request to a sandbox takes two sockets."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Server(uvicorn.Server):
    """Tells how to begin, once requests are served; at the end does not wait for streams that have none."""

    def __init__(
        self, config: uvicorn.Config, settings: Settings, edge: Edge, workers: EdgeWorkers | None = None
    ) -> None:
        super().__init__(config)
        self._settings = settings
        self._edge = edge
        self._workers = workers

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            gc.freeze()  # what is there now lives as long as the process: no collection need look at it again
            sys.stderr.write(
                _welcome(public_url(self._settings), self._settings.home / "api-key", for_a_person=sys.stderr.isatty())
            )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(STREAMS_END_S, self._edge.close_streams)
        if self._workers is not None:
            await self._workers.stop()  # first, because what they still carry may have to reach the API
        await super().shutdown(sockets)


def _welcome(url: str, key_file: Path, *, for_a_person: bool) -> str:
    bold, plain = ("\033[1m", "\033[0m") if for_a_person else ("", "")
    return f"""
{bold}Sandgate is ready{plain} at {url} (API: {url}/docs, key: {key_file})

{bold}A sandbox with three MCP servers:{plain}

read -r MCP_URL MCP_TOKEN < <(curl -s {url}/v2/sandboxes -H "X-API-KEY: $(cat {key_file})" \\
  -H 'Content-Type: application/json' -d '{{"timeout": 3600, "mcp": {{"time": {{}}, "fetch": {{}}, "git": {{}}}}}}' |
  python3 -c 'import json, sys; a = json.load(sys.stdin); m = a.get("mcp") or sys.exit(a["message"])
print(m["url"], m["token"])')

{bold}Claude Code with all of them:{plain}

claude mcp add --transport http sandgate "$MCP_URL" --header "Authorization: Bearer $MCP_TOKEN"

{bold}The E2B SDKs:{plain}

export E2B_API_KEY=$(cat {key_file}) E2B_API_URL={url} E2B_SANDBOX_URL={url} E2B_VOLUME_API_URL={url}

"""


def _listen(host: str, port: int, setting: str, *, shared: bool = False) -> socket.socket:
    """With `shared` others of this user may listen there too. Raises: SandgateError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG, reuse_port=shared)
    except OSError as error:
        raise SandgateError(
            f"Cannot serve on {host}, port {port}: {error.strerror}. Set SANDGATE_HOST or {setting}."
        ) from error
