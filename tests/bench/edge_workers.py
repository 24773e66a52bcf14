"""What edge workers cost and give, by hand: the edge in the server's process, and in 1 and 2 workers, before one pod.

    python -m tests.bench.edge_workers [connections] [rounds]

The pod is the bare ASGI application, so that the edge is what is measured. The three take turns in every round, so that
all meet the same load; a first round warms up.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import uvloop
from starlette.types import Receive, Scope, Send

from app.edge.edge import Edge
from app.edge.relay import FromWorkers
from app.edge.server import EmbeddedServer, server_config
from app.edge.workers import EdgeWorkers
from tests.bench import load
from tests.bench.floor_app import app as floor_app
from tests.bench.processes import cpu_ms, pss_mib
from tests.edge.serving import Pod, Pods

_POD = Pod("ipod", "127.91.0.1")
_PORT = 50005
_SECONDS = 0.7
_BODY = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"%b"}}}' % (
    b"x" * 50
)
_REQUEST = b"POST /sandboxes/ipod/mcp HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
_REQUEST += b"content-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


@dataclass
class Front:
    """An edge in processes of its own."""

    workers: int
    port: int
    pids: list[int]
    """Those that carry traffic."""
    per_second: list[float] = field(default_factory=list)
    cpu_ms_per_call: list[float] = field(default_factory=list)

    def measure(self, generators: list[Program], connections: int) -> None:
        before = cpu_ms(self.pids)
        for generator in generators:
            generator.tell(f"{self.port} {connections // len(generators)}")
        given = [generator.hear().split() for generator in generators]
        self.per_second.append(sum(float(rate) for _, rate in given))
        self.cpu_ms_per_call.append((cpu_ms(self.pids) - before) / sum(int(calls) for calls, _ in given))


class Program:
    """This file in a process of its own, until its input ends."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", __spec__.name, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def end(self) -> None:
        self._process.communicate(timeout=30)


def compare(connections: int, rounds: int) -> None:
    with ExitStack() as stack:

        def start(*arguments: str) -> Program:
            program = Program(*arguments)
            stack.callback(program.end)
            return program

        generators = [start("--load") for _ in range(2)]
        start("--pod").hear()
        fronts = []
        for workers in (0, 1, 2):
            port, *pids = map(int, start("--front", str(workers)).hear().split())
            fronts.append(Front(workers, port, pids))
        for number in range(rounds + 1):
            for front in fronts:
                front.measure(generators, connections)
                if number == 0:
                    front.per_second.clear()
                    front.cpu_ms_per_call.clear()
        print(f"{connections} connections, {rounds} rounds, load average {os.getloadavg()[0]:.1f}")
        for front in fronts:
            ratio = statistics.median(
                own / base for own, base in zip(front.per_second, fronts[0].per_second, strict=True)
            )
            print(
                f"{front.workers} workers: median {statistics.median(front.per_second):,.0f} calls/s,"
                f" best {max(front.per_second):,.0f}, ratio {ratio:.2f};"
                f" {statistics.median(front.cpu_ms_per_call):.3f} ms of processor time a call;"
                f" PSS {', '.join(f'{pss_mib([pid]):.0f}' for pid in front.pids)} MiB"
            )


async def _serve_until_told(server: EmbeddedServer, listener: socket.socket, line: str) -> None:
    serving = asyncio.create_task(server.serve([listener]))
    print(line, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    server.should_exit = True
    await serving


async def _pod() -> None:
    server = EmbeddedServer(server_config(floor_app, lifespan="off"))
    await _serve_until_told(server, socket.create_server((_POD.address or "", _PORT), backlog=500), "")


async def _front(count: int) -> None:
    if not count:
        listener = _listen()
        edge = Edge(_api, Pods(_POD), sandbox_domain=None, resume=Pods().resume)
        async with edge:
            server = EmbeddedServer(server_config(edge, lifespan="off"))
            await _serve_until_told(server, listener, f"{listener.getsockname()[1]} {os.getpid()}")
        return
    async with _workers(count) as (workers, port):
        server = EmbeddedServer(server_config(FromWorkers(workers.in_step(_api)), lifespan="off"))
        pids = [each.pid for each in psutil.Process().children()]
        await _serve_until_told(server, workers.listen(), f"{port} {' '.join(map(str, pids))}")


@asynccontextmanager
async def _workers(count: int) -> AsyncIterator[tuple[EdgeWorkers, int]]:
    first = _listen()
    port = first.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        listeners = [first, *(_listen(port) for _ in range(count - 1))]
        async with EdgeWorkers(listeners, Path(home), sandbox_domain=None) as workers:
            await workers.admit(Pods().resume)
            workers.tell(_POD.sandbox_id, _POD)
            await workers.caught_up()
            yield workers, port


def _listen(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port), backlog=500, reuse_port=True)


async def _api(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _generate() -> None:
    for line in sys.stdin:
        port, connections = map(int, line.split())
        given = load.over_http("127.0.0.1", port, [_REQUEST] * connections, seconds=_SECONDS)
        print(given.calls, given.per_second, flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--pod"]:
            uvloop.run(_pod())
        case ["--front", workers]:
            uvloop.run(_front(int(workers)))
        case ["--load"]:
            _generate()
        case numbers:
            compare(*[*map(int, numbers), *(16, 9)[len(numbers) :]])
