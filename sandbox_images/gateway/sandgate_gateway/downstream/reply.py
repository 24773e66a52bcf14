"""How the gateway answers over HTTP: as JSON if the answer comes soon and alone, as an event stream otherwise."""

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice

from sandgate_gateway.asgi import Receive, Send, disconnected, respond
from sandgate_gateway.sse import KEEP_ALIVE, encode_event, encode_priming

KEEP_ALIVE_S = 15.0
"""Between comments on a silent stream: proxies close idle connections after 30 to 60 s."""

WATCH_AFTER_S = 0.05

MAX_EVENTS = 1024
"""Kept per stream, sent ones included; the oldest go first. A client that reads nothing loses the oldest."""

MAX_KEPT_BYTES = 8 * 1024 * 1024

MAX_DELIVERED_BYTES = 64 * 1024
"""Kept of a stream that was sent to its end, and of what was sent on one that has none."""

MAX_UNHEARD_BYTES = 256 * 1024
"""Kept of a stream without end while nobody listens: there may be a thousand of them, for a day."""

RETRY_MS = 1000

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


class EventStream:
    """Events in order, written by whichever response is attached; kept for resumption if the stream has a name.

    An event's id is `<stream name>-<number>`, so that it names its stream (2025-11-25, basic/transports, resumability).
    What is kept are the messages: several streams may keep the same one.
    """

    def __init__(self, name: str | None = None, *, is_endless: bool = False) -> None:
        """`is_endless`: it belongs to no request, so that nothing but the end of its session ends it."""
        self.name = name
        self.is_closed = False
        self.delivered = 0
        """Number of the last event that was sent."""
        self._is_endless = is_endless
        self._messages: deque[bytes] = deque()
        self._first = 1  # number of the oldest message kept
        self._kept_bytes = 0
        self._writer: asyncio.Future[None] | None = None
        self._attached: object = None

    def push(self, message: bytes) -> None:
        """Add one JSON-RPC message; silent once the stream is closed."""
        if self.is_closed:
            return
        self._messages.append(message)
        self._kept_bytes += len(message)
        self._make_room()
        self._wake()

    def close(self) -> None:
        """No more events will come."""
        self.is_closed = True
        self._wake()

    async def write_to(
        self, receive: Receive, send: Send, *, after: int = 0, headers: list[tuple[bytes, bytes]], primed: bool = False
    ) -> bool:
        """Answer with this stream, from the event after number `after`. Returns once everything is sent, another
        response took over, or the client is gone; tells whether the client is still there."""
        me = self._attached = object()
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS + headers})
        gone = asyncio.ensure_future(disconnected(receive))
        gone.add_done_callback(lambda _: self._wake())
        if primed:
            await _write(send, encode_priming(f"{self.name}-{after}", RETRY_MS))
        try:
            position = after
            while self._attached is me and not gone.done():
                if chunk := self._after(position):
                    position = self._first + len(self._messages) - 1
                    await _write(send, chunk)
                    if not gone.done():
                        self._release(position)
                elif self.is_closed:
                    break
                elif not await self._wait(KEEP_ALIVE_S):
                    await _write(send, KEEP_ALIVE)
        finally:
            is_there = not gone.done()
            gone.cancel()
            is_mine = self._attached is me
            if is_mine:
                self._attached = None
                self._make_room()
        if is_there:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            if self.is_closed and is_mine and self._kept_bytes > MAX_DELIVERED_BYTES:
                self._messages.clear()  # delivered: too large to keep for the rare client that lost it underway
                self._kept_bytes = 0
        return is_there

    def take_over(self) -> None:
        """End the response that is attached now, without closing the stream."""
        self._attached = None
        self._wake()

    def _after(self, position: int) -> bytes:
        number = max(position + 1, self._first)
        return b"".join(
            encode_event(message, None if self.name is None else f"{self.name}-{number + index}")
            for index, message in enumerate(islice(self._messages, number - self._first, None))
        )

    def _release(self, position: int) -> None:
        """Everything up to this number was sent. A stream nobody can resume need not keep it, one without end not all
        of it."""
        self.delivered = max(self.delivered, position)
        if self.name is None or self._is_endless:
            most = 0 if self.name is None else MAX_DELIVERED_BYTES
            while self._kept_bytes > most and self._first <= position:
                self._drop_oldest()

    def _make_room(self) -> None:
        most = MAX_UNHEARD_BYTES if self._is_endless and self._attached is None else MAX_KEPT_BYTES
        while len(self._messages) > MAX_EVENTS or (self._kept_bytes > most and len(self._messages) > 1):
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._kept_bytes -= len(self._messages.popleft())
        self._first += 1

    async def _wait(self, seconds: float) -> bool:
        """False if nothing has happened for that long."""
        loop = asyncio.get_running_loop()
        future = self._writer = loop.create_future()
        timer = loop.call_later(seconds, future.cancel)
        try:
            await asyncio.wait((future,))
            return not future.cancelled()
        finally:
            timer.cancel()
            if self._writer is future:  # and not that of a response which took over
                self._writer = None

    def _wake(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)


class Reply:
    """The answer to one POST. `push` and `finish` come from the call, `write_to` is the HTTP side; in any order."""

    def __init__(self, stream: EventStream) -> None:
        self.stream = stream
        self._decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer: tuple[int, bytes] | None = None
        self.is_finished = False

    def push(self, message: bytes) -> None:
        """A notification or a request for the client, ahead of the answer."""
        self.stream.push(message)
        self._decide()

    def finish(self, message: bytes | None, status: int = 200) -> None:
        """The answer itself; None ends the reply without one, as a cancelled request ends."""
        if self.is_finished:
            return
        self.is_finished = True
        if message is not None and not self._decided.done():
            self._answer = (status, message)
        elif message is not None:
            self.stream.push(message)
        self.stream.close()
        self._decide()

    async def write_to(
        self,
        receive: Receive,
        send: Send,
        *,
        patience_s: float,
        headers: dict[str, str],
        on_disconnect: Callable[[], None] | None = None,
        primed: bool = False,
    ) -> None:
        """Send the answer. After `patience_s` without one, or with the first event, it becomes an event stream.
        `on_disconnect` is called if the client goes away before it has the answer."""
        watch = _Watch(receive, self._decide) if on_disconnect is not None else None
        timer = asyncio.get_running_loop().call_later(patience_s, self._decide)
        try:
            await self._decided
        finally:
            timer.cancel()
            if watch is not None:
                watch.close()
        if watch is not None and on_disconnect is not None and watch.is_gone and self._answer is None:
            on_disconnect()
            return
        if self._answer is not None:
            status, body = self._answer
            await respond(send, status, body, headers)
            return
        lines = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        is_there = await self.stream.write_to(receive, send, headers=lines, primed=primed)
        if not is_there and on_disconnect is not None:
            on_disconnect()

    def _decide(self) -> None:
        if not self._decided.done():
            self._decided.set_result(None)


class _Watch:
    """Notices that the client goes away, from WATCH_AFTER_S on: most answers are there before."""

    def __init__(self, receive: Receive, gone: Callable[[], None]) -> None:
        self._receive = receive
        self._gone = gone
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)
        self.is_gone = False

    def close(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._run(), name="watch for the client's disconnect")

    async def _run(self) -> None:
        await disconnected(self._receive)
        self.is_gone = True
        self._gone()


async def _write(send: Send, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})
