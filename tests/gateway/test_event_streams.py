"""What is kept for clients that do not listen, and that it is little."""

import asyncio
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sandgate_gateway.aggregate import Aggregate
from sandgate_gateway.downstream import reply
from sandgate_gateway.downstream.fanout import Fanout
from sandgate_gateway.downstream.reply import MAX_DELIVERED_BYTES, MAX_UNHEARD_BYTES, EventStream
from sandgate_gateway.downstream.sessions import Session, Sessions
from sandgate_gateway.servers.server import Server

from tests.gateway.parts import empty_fleet
from tests.waiting import BOUND_S

KIB = 1024


async def never_gone() -> Mapping[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def sent(stream: EventStream, after: int = 0) -> bytes:
    """What a client gets that listens until nothing more is there."""
    body: list[bytes] = []

    async def send(event: Mapping[str, Any]) -> None:
        body.append(event.get("body", b""))
        if body[-1]:
            stream.take_over()

    await stream.write_to(never_gone, send, after=after, headers=[])
    return b"".join(body)


async def test_of_what_nobody_hears_the_latest_is_kept() -> None:
    stream = EventStream("0", is_endless=True)
    for number in range(100):
        stream.push(b"%03d" % number + b"x" * 10 * KIB)
    body = await sent(stream)
    assert b"id: 0-100\ndata: 099x" in body
    assert 0.9 * MAX_UNHEARD_BYTES < len(body) < 1.1 * MAX_UNHEARD_BYTES


async def test_of_what_was_delivered_a_little_is_kept_and_sent_again_to_whom_names_an_event() -> None:
    stream = EventStream("0", is_endless=True)
    for number in range(20):
        stream.push(b"%03d" % number + b"x" * 10 * KIB)
    await sent(stream)
    assert stream.delivered == 20
    again = await sent(stream)
    assert 0.8 * MAX_DELIVERED_BYTES < len(again) < 1.1 * MAX_DELIVERED_BYTES
    stream.push(b"news")
    assert await sent(stream, after=stream.delivered) == b"event: message\nid: 0-21\ndata: news\n\n"
    assert b"019x" in await sent(stream, after=19 - 1)


async def test_a_response_that_takes_over_hears_at_once_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply, "KEEP_ALIVE_S", 10 * BOUND_S)
    stream = EventStream("0", is_endless=True)
    earlier = asyncio.create_task(sent(stream))
    await asyncio.sleep(0)  # it waits now
    stream.take_over()
    later = asyncio.create_task(sent(stream))
    async with asyncio.timeout(BOUND_S):
        assert await earlier == b""
        stream.push(b"news")
        assert await later == b"event: message\nid: 0-1\ndata: news\n\n"


async def test_a_request_keeps_all_it_has_to_say_whether_or_not_anybody_listens() -> None:
    stream = EventStream("1")
    for number in range(100):
        stream.push(b"%03d" % number + b"x" * 10 * KIB)
    assert b"000x" in await sent(stream)
    assert b"000x" in await sent(stream)


async def test_what_all_sessions_are_told_is_kept_once(tmp_path: Path) -> None:
    async def ended(_: Session) -> None:
        return

    sessions = Sessions(ended)
    for _ in range(100):
        sessions.add(Session(token="t", version="2025-11-25", capabilities={}))
    aggregate = Aggregate(empty_fleet(tmp_path), b"key")
    fanout = Fanout(aggregate, sessions)
    server: Server = None  # type: ignore[assignment]  # logs are not asked for theirs
    tracemalloc.start()
    try:
        for number in range(10):
            fanout.heard(server, "notifications/message", {"level": "info", "data": f"{number}" + "x" * 100 * KIB})
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for session in sessions:
        assert b"9xxx" in await sent(session.background)
    assert kept < 10 * MAX_UNHEARD_BYTES  # and not of each of the hundred sessions
