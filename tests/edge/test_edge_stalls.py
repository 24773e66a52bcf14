"""A pod that takes nothing of what is sent to it does not hold the client's request for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request
from websockets.server import ServerProtocol

from app.edge.stalls import StallWatch
from tests.edge.conftest import Front, edge_serving, fronting, to
from tests.edge.serving import Pod, new_address, talking
from tests.waiting import BOUND_S

STALL_S = 0.3
MORE_THAN_BUFFERS = bytes(32 * 1024 * 1024)


@pytest.fixture
def front() -> Iterator[Front]:
    with edge_serving(stall_s=STALL_S) as served, fronting(served) as front:
        yield front


def pod_of(front: Front) -> Pod:
    return front.pods.add(Pod("istuck", new_address()))


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 99000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n5e69ec0\r\n"]
)
async def test_an_upload_that_the_pod_does_not_take_is_broken_off(front: Front, framing: bytes) -> None:
    over = asyncio.Event()

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await over.wait()

    pod = pod_of(front)
    assert pod.address
    async with talking(conversation, pod.address, 8000):
        reader, writer = await asyncio.open_connection(front.server.host, front.server.port)
        names = "".join(f"{name}: {value}\r\n" for name, value in to(pod, 8000).items()).encode()
        writer.write(b"PUT / HTTP/1.1\r\nHost: x\r\n" + names + framing + MORE_THAN_BUFFERS)
        try:
            async with asyncio.timeout(BOUND_S):
                assert (await reader.readline()).startswith(b"HTTP/1.1 502 ")
        finally:
            over.set()
            writer.transport.abort()


async def test_a_websocket_whose_pod_takes_nothing_is_closed(front: Front) -> None:
    over = asyncio.Event()

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = ServerProtocol()
        protocol.receive_data(await reader.readuntil(b"\r\n\r\n"))
        (request,) = protocol.events_received()
        assert isinstance(request, Request)
        protocol.send_response(protocol.accept(request))
        writer.writelines(protocol.data_to_send())
        await over.wait()

    async def send_without_end(client: ClientConnection) -> None:
        async with asyncio.timeout(BOUND_S):
            while True:
                await client.send(bytes(1024 * 1024))

    pod = pod_of(front)
    assert pod.address
    async with (
        talking(conversation, pod.address, 8000),
        connect(front.ws(), additional_headers=to(pod, 8000), proxy=None, ping_interval=None) as client,
    ):
        try:
            with pytest.raises(ConnectionClosed):
                await send_without_end(client)
        finally:
            over.set()


class Emptying(asyncio.WriteTransport):
    """Has less to send every time it is asked, until it has this much."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self.sizes.pop(0) if len(self.sizes) > 1 else self.sizes[0]


async def test_what_moves_however_slowly_may_go_on() -> None:
    transport = Emptying([9, 8, 5, 4, 3])
    gave_up = asyncio.Event()
    watch = StallWatch(transport, 0.001, gave_up.set)
    async with asyncio.timeout(BOUND_S):
        await gave_up.wait()
    assert transport.sizes == [3]
    watch.end()
