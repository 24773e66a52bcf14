"""Serves an application on the agent's port until the process is told to stop."""

import asyncio
import signal
import socket
from collections.abc import Callable

from sandgate_agent.application import Application
from sandgate_agent.asgi import Request
from sandgate_agent.lean_uvicorn import Config, Server

_KEEP_ALIVE_S = 330
"""Longer than the 300 s for which E2B's Python SDK keeps an idle connection."""

_STOP_GRACE_S = 2
"""How long open streams may take to end when the agent is told to stop."""

_BACKLOG = 1024


async def serve_http(
    application: Application, *, host: str, port: int, when_listening: Callable[[], None] | None = None
) -> None:
    """Returns after SIGTERM or SIGINT. Raises: OSError when it cannot listen there.

    `when_listening` is called once everything is opened and imported that serving needs, before the first request.
    """
    # A socket of our own, because the event loop starts four threads only to resolve the address.
    listener = socket.create_server((host, port), backlog=_BACKLOG)
    config = Config(
        application,
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
    config.load()
    server = Server(config)
    if when_listening is not None:
        when_listening()
    loop = asyncio.get_running_loop()
    for number in signal.SIGTERM, signal.SIGINT:
        loop.add_signal_handler(number, server.handle_exit, number, None)
    await server.serve(sockets=[listener])


async def answer_health(request: Request) -> None:
    await request.answer(204, headers={"Cache-Control": "no-store"})
