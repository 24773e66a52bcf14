"""Nothing is left behind by requests that end badly."""

from __future__ import annotations

import asyncio
import threading

import psutil
from starlette.types import Receive, Scope, Send

from tests.edge.conftest import Front, to
from tests.edge.serving import with_lifespan
from tests.waiting import until


async def test_hang_ups_at_every_stage_leave_no_connection_open(front: Front) -> None:
    open_streams = 0
    lock = threading.Lock()

    @with_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal open_streams
        with lock:
            open_streams += 1
        try:
            message = await receive()
            if scope["path"] != "/silent":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            while message["type"] != "http.disconnect":
                message = await receive()
        finally:
            with lock:
                open_streams -= 1

    pod = front.sandbox(app)
    names = "".join(f"{name}: {value}\r\n" for name, value in to(pod).items())
    requests = [
        f"GET /silent HTTP/1.1\r\nHost: x\r\n{names}\r\n",
        f"GET /talking HTTP/1.1\r\nHost: x\r\n{names}\r\n",
        f"POST /talking HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n{names}\r\nhalf",
        f"POST /silent HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n{names}\r\n4\r\nhalf\r\n",
        f"POST /silent HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n{names}\r\n",
        f"GET /talking HTTP/1.1\r\nHost: x\r\n{names}",
    ]
    process = psutil.Process()
    before = len(process.net_connections("tcp"))
    writers = []
    for number in range(120):
        _, writer = await asyncio.open_connection(front.server.host, front.server.port)
        writer.write(requests[number % len(requests)].encode())
        writers.append(writer)
    await until(lambda: open_streams == 80)
    for writer in writers:
        writer.transport.abort()
    await until(lambda: open_streams == 0)
    await until(lambda: len(process.net_connections("tcp")) <= before)
