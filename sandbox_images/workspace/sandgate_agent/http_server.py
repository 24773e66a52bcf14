"""Serves an application on the agent's port until the process is told to stop."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator

from sandgate_agent.application import Application
from sandgate_agent.asgi import Request
from sandgate_agent.lean_uvicorn import Config, Server

_KEEP_ALIVE_S = 330
"""Longer than the 300 s for which E2B's Python SDK keeps an idle connection."""

_STOP_GRACE_S = 2
"""How long open streams may take to end when the agent is told to stop."""


async def serve_http(application: Application, *, host: str, port: int) -> None:
    """Returns after SIGTERM or SIGINT."""
    server = _Server(
        Config(
            application,
            host=host,
            port=port,
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_STOP_GRACE_S,
        )
    )
    loop = asyncio.get_running_loop()
    for number in signal.SIGTERM, signal.SIGINT:
        loop.add_signal_handler(number, server.handle_exit, number, None)
    await server.serve()


class _Server(Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would raise them again at its end, before the rest is cleaned up."""
        yield


async def answer_health(request: Request) -> None:
    await request.answer(204, headers={"Cache-Control": "no-store"})
