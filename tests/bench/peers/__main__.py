"""`python -m tests.bench.peers`: Sandgate beside other gateways, on the same MCP server, in one run.

Installs the peers from PyPI, at pinned versions, into environments that are thrown away. Needs what
`tests.bench` does.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import docker
import psutil

from app.main import sandbox_images
from app.settings import Settings
from tests.bench.asgi_server import serving
from tests.bench.peers import open_sandbox
from tests.bench.peers.comparison import Bare, Product, compare
from tests.bench.peers.gateways import context_forge, fastmcp, litellm
from tests.bench.peers.peer import PeerError, Start, Upstream
from tests.bench.peers.sandgate import sandgate
from tests.bench.processes import rss_mib
from tests.bench.results import Section
from tests.bench.runs import Output, run
from tests.bench.wire import Endpoint

RUN_LIMIT_S = 900

GATEWAYS: Mapping[str, Start] = {
    "sandgate": sandgate,
    "fastmcp": fastmcp,
    "litellm": litellm,
    "contextforge": context_forge,
}
_OPEN_SANDBOX = "opensandbox"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    Output.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of load in each round, for each way")
    parser.add_argument("peers", nargs="*", help=f"{', '.join((*GATEWAYS, _OPEN_SANDBOX))}; default: all")
    arguments = parser.parse_args()
    wanted = arguments.peers or [*GATEWAYS, _OPEN_SANDBOX]
    if unknown := set(wanted) - {*GATEWAYS, _OPEN_SANDBOX}:
        parser.error(f"there is no peer {', '.join(sorted(unknown))}")

    def measure() -> Iterator[Section]:
        yield from _gateways([name for name in GATEWAYS if name in wanted], arguments.rounds, arguments.seconds)
        if _OPEN_SANDBOX in wanted:
            with tempfile.TemporaryDirectory(prefix="sandgate-peer-") as folder:
                try:
                    yield from open_sandbox.measure(Path(folder), sandbox_images(Settings()).workspace)
                except (PeerError, subprocess.SubprocessError) as error:
                    yield Section("OpenSandbox's server", (), (_failure(_OPEN_SANDBOX, error),))

    run(measure, docker.APIClient(), Output.of("make bench-peers", arguments), limit_s=RUN_LIMIT_S)


def _gateways(names: Sequence[str], rounds: int, seconds: float) -> Iterator[Section]:
    failures: list[str] = []
    with ExitStack() as stack:
        # At an address of this machine that sandboxes can be allowed to reach; loopback they never can.
        (host,) = (a.address for a in psutil.net_if_addrs()["docker0"] if a.family == socket.AF_INET)
        server = stack.enter_context(serving("tests.bench.echo_http_app:app", host))
        floor = stack.enter_context(serving("tests.bench.floor_app:app", host))
        upstream = Upstream(host, server.port)
        products: list[Product] = []
        for name in names:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sandgate-peer-")))
            try:
                running = stack.enter_context(GATEWAYS[name](folder, upstream))
            except (PeerError, subprocess.SubprocessError) as error:
                failures.append(_failure(name, error))
            else:
                products.append(Product(running, rss_mib(running.pids())))
        bare = [
            Bare("bare ASGI app", Endpoint(host, floor.port, "/", "none"), floor.pid),
            Bare("direct", Endpoint(host, server.port, "/mcp", "none"), server.pid),
        ]
        yield from compare(products, bare, wanted=rounds, seconds=seconds)
    if failures:
        yield Section("Peers that could not run", (), tuple(failures))


def _failure(name: str, error: Exception) -> str:
    """With what the installer said, if it was that."""
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    return f"{name} could not run: {str(said).strip()[-600:]}"


if __name__ == "__main__":
    main()
