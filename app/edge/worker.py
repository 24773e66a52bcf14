"""An edge worker: a process that carries sandbox traffic beside others on the same port, and passes on what is not.

Started by `app.edge.workers` with open files: the listening socket, the connection to the control plane, the home, and
the table of open requests. It has no state of its own to lose, and imports nothing of the control plane's.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import socket
from typing import Any

import structlog
import uvloop

from app.edge.edge import Edge
from app.edge.lines import Lines
from app.edge.open_counts import SharedCounts
from app.edge.relay import SOCKET_NAME, Relay
from app.edge.replica import KnownSandbox, Replica
from app.edge.server import STREAMS_END_S, EmbeddedServer, server_config
from app.errors import Problem
from app.logs import configure_logging

_PROBLEMS = {kind.status: kind for kind in Problem.__subclasses__()}

_log = structlog.get_logger()


class ControlPlane:
    """The worker's end of the connection. `lines` is to be connected."""

    def __init__(self, counts: SharedCounts) -> None:
        self.lines = Lines(self._heard, self._ended)
        self.replica = Replica(self._cut_off, counts)
        self.began: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        """Done once the replica is filled; the sandbox domain."""
        self.told_to_stop = asyncio.Event()
        self.edge: Edge | None = None
        """Told of sandboxes that are cut off."""
        self._calls = itertools.count()
        self._answers: dict[int, asyncio.Future[None]] = {}

    async def resume(self, sandbox_id: str) -> None:
        """Returns once the sandbox can be reached and the replica says where. Raises: Problem."""
        call = next(self._calls)
        answer = self._answers[call] = asyncio.get_running_loop().create_future()
        self.lines.send({"resume": sandbox_id, "call": call})
        try:
            await answer
        finally:
            del self._answers[call]

    def _heard(self, message: dict[str, Any]) -> None:
        match message:
            case {"put": known}:
                self.replica.put(KnownSandbox(**known))
            case {"remove": sandbox_id}:
                self.replica.remove(sandbox_id)
            case {"begin": sandboxes, "awaited": awaited, "domain": domain}:
                self.replica.fill((KnownSandbox(**known) for known in sandboxes), awaited)
                self.began.set_result(domain)
            case {"answer": call, "problem": problem}:
                self._answer(call, problem)
            case {"stop": True}:
                self.told_to_stop.set()
        if "step" in message:
            self.lines.send({"at": message["step"]})

    def _answer(self, call: int, problem: tuple[int, str] | None) -> None:
        answer = self._answers.get(call)
        if answer is None or answer.done():
            return  # whoever waited is gone
        if problem is None:
            answer.set_result(None)
        else:
            status, text = problem
            answer.set_exception(_PROBLEMS.get(status, Problem)(text))

    def _cut_off(self, sandbox_id: str) -> None:
        if self.edge is not None:
            self.edge.drop(sandbox_id)

    def _ended(self) -> None:
        # At once, streams and all: nothing that is open could be known to be allowed any longer.
        os._exit(1)


async def serve(listener: socket.socket, connection: socket.socket, home: int, counts: SharedCounts) -> None:
    """Serve until told to stop; then requests may take a few seconds to end. `home` is an open file of that folder."""
    loop = asyncio.get_running_loop()
    control_plane = ControlPlane(counts)
    await loop.create_unix_connection(lambda: control_plane.lines, sock=connection)
    control_plane.lines.send({"hello": True})
    domain = await control_plane.began
    relay = Relay(f"/proc/self/fd/{home}/{SOCKET_NAME}")
    edge = Edge(relay, control_plane.replica, sandbox_domain=domain, resume=control_plane.resume, counts=counts)
    control_plane.edge = edge
    server = EmbeddedServer(server_config(edge, lifespan="off"))
    async with edge:
        tasks = {
            asyncio.create_task(server.serve([listener]), name="server"),
            asyncio.create_task(control_plane.told_to_stop.wait(), name="told to stop"),
        }
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        loop.call_later(STREAMS_END_S, edge.close_streams)
        control_plane.told_to_stop.set()
        await asyncio.wait(tasks)
    relay.close()
    for task in tasks:
        task.result()


def main() -> None:
    arguments = argparse.ArgumentParser()
    for name in ("listener", "connection", "home", "counts", "row", "rows"):
        arguments.add_argument(f"--{name}", type=int, required=True)
    given = arguments.parse_args()
    # When to stop is for the control plane to say: a service manager tells all processes at once.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    configure_logging()
    listener = socket.socket(fileno=given.listener)
    listener.setblocking(False)
    connection = socket.socket(fileno=given.connection)
    uvloop.run(serve(listener, connection, given.home, SharedCounts(given.counts, given.row, given.rows)))


if __name__ == "__main__":
    main()
