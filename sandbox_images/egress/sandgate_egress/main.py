"""The command line: where to listen, and where to keep what was told."""

from __future__ import annotations

import argparse
import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sandgate_egress.control import obey, remember
from sandgate_egress.proxy import Listener, Proxy

_LOOKUP_THREADS = 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="sandgate-egress", description=__doc__)
    parser.add_argument("--address", required=True, help="where sandboxes' connections are diverted to")
    parser.add_argument("--http-port", type=int, required=True, help="takes what was meant for port 80")
    parser.add_argument("--tls-port", type=int, required=True, help="takes what was meant for port 443")
    parser.add_argument("--kept-in", type=Path, required=True, help="a file that outlasts this process")
    options = parser.parse_args()
    listeners = [
        Listener(options.address, options.http_port, target_port=80, is_tls=False),
        Listener(options.address, options.tls_port, target_port=443, is_tls=True),
    ]
    asyncio.run(_run(listeners, options.kept_in))


async def _run(listeners: list[Listener], kept_in: Path) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_LOOKUP_THREADS, thread_name_prefix="lookup"))
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    proxy = Proxy()
    remember(proxy, kept_in)
    async with proxy.serve(listeners), asyncio.TaskGroup() as group:
        obeying = group.create_task(obey(proxy, kept_in), name="control")
        await ended.wait()
        obeying.cancel()
