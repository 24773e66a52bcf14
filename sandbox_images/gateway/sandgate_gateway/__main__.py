"""`python -m sandgate_gateway`: the process. One uvicorn server, two ports, one event loop."""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import uvloop

from sandgate_gateway import lean_uvicorn
from sandgate_gateway.asgi import Receive, Scope, Send
from sandgate_gateway.control import CONTROL_TOKEN_DIGEST, ControlEndpoint
from sandgate_gateway.control_plane_requests import ControlPlaneRequests
from sandgate_gateway.gateway import Gateway
from sandgate_gateway.one_write import OneWriteProtocol

KEEP_ALIVE_S = 75
"""Longer than the edge keeps a connection it does not use, so that it is never the gateway that closes one."""

SHUTDOWN_GRACE_S = 3


class Server(lean_uvicorn.Server):
    """uvicorn without its signal handling and without its clock: a sandbox that does nothing should use no CPU."""

    def __init__(self, config: lean_uvicorn.Config) -> None:
        super().__init__(config)
        self._stopped = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self._stopped.wait()

    def stop(self) -> None:
        self.should_exit = True
        self._stopped.set()


class Ports:
    """Sends a request to the application of the port it came in on."""

    def __init__(self, gateway: Gateway, control: ControlEndpoint, control_port: int) -> None:
        self._mcp = gateway.endpoint
        self._control = control
        self._control_port = control_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        application = self._control if scope["server"][1] == self._control_port else self._mcp
        await application(scope, receive, send)


async def serve(options: argparse.Namespace, control_token_digest: str) -> None:
    sockets = [_listen(options.host, port) for port in (options.mcp_port, options.control_port)]
    requests = ControlPlaneRequests()
    gateway = Gateway(
        Path(options.data_dir),
        requests,
        bridge_socket=Path(options.bridge_socket),
        own_users=options.server_users == "own",
    )
    control = ControlEndpoint(gateway, requests, control_token_digest)
    config = lean_uvicorn.Config(
        Ports(gateway, control, sockets[1].getsockname()[1]),
        http=OneWriteProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
    )
    server = Server(config)

    def stop() -> None:
        gateway.hang_up()
        server.stop()

    async with _signals(stop):
        try:
            await server.serve(sockets=sockets)
        finally:
            await gateway.close()


@contextlib.asynccontextmanager
async def _signals(stop: Callable[[], None]) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _control_token_digest() -> str:
    digest = os.environ.get(CONTROL_TOKEN_DIGEST)
    if not digest:
        sys.exit(f"sandgate-gateway: {CONTROL_TOKEN_DIGEST} is not set; it is the SHA-256 of the control token")
    return digest


def _listen(host: str, port: int) -> socket.socket:
    try:
        listener = socket.create_server((host, port), backlog=1024)
    except OSError as error:
        sys.exit(f"sandgate-gateway: cannot listen on {host}:{port}: {error.strerror}")
    listener.setblocking(False)
    return listener


def main() -> None:
    parser = argparse.ArgumentParser(prog="sandgate-gateway", description=__doc__)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--mcp-port", type=int, default=50005)
    parser.add_argument("--control-port", type=int, default=50006)
    parser.add_argument("--data-dir", default="/var/lib/mcp")
    parser.add_argument("--bridge-socket", default="/run/servers/gateway.sock", help="where image servers call")
    parser.add_argument(
        "--server-users",
        choices=["own", "same"],
        default="own",
        help="run each server under a uid of its own (needs root), or all of them as the gateway's user",
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    options = parser.parse_args()
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    gc.freeze()  # what was imported lives as long as the process: no collection need look at it again
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options, _control_token_digest()))


if __name__ == "__main__":
    main()
