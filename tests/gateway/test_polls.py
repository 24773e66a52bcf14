"""The control plane's long poll, and what becomes of it when the control plane goes away."""

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from sandgate_gateway.control import ControlEndpoint
from sandgate_gateway.control_plane_requests import ControlPlaneRequests

from tests.gateway.parts import assembled_gateway
from tests.waiting import BOUND_S

TOKEN = "control"


class Poll:
    """One GET /requests, on a connection that the test can cut."""

    def __init__(self, door: ControlEndpoint) -> None:
        self.body = b""
        self._events: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self._events.put_nowait({"type": "http.request", "body": b""})
        scope = {
            "method": "GET",
            "path": "/requests",
            "query_string": b"wait=100",
            "headers": [(b"authorization", f"Bearer {TOKEN}".encode())],
        }
        self.answered = asyncio.create_task(door(scope, self._events.get, self._send))

    def hang_up(self) -> None:
        self._events.put_nowait({"type": "http.disconnect"})

    async def _send(self, event: Mapping[str, Any]) -> None:
        self.body += event.get("body", b"")


async def test_a_run_is_not_handed_to_a_poll_whose_asker_has_hung_up(tmp_path: Path) -> None:
    requests = ControlPlaneRequests()
    async with asyncio.timeout(BOUND_S), assembled_gateway(tmp_path, requests) as gateway:
        door = ControlEndpoint(gateway, requests, hashlib.sha256(TOKEN.encode()).hexdigest())
        cut = Poll(door)
        cut.hang_up()
        await cut.answered
        assert cut.body == b""
        run = asyncio.create_task(requests.run("box", "say", {}))
        poll = Poll(door)
        await poll.answered
        (handed,) = orjson.loads(poll.body)["requests"]
        assert requests.settle(handed["id"], "done")
        assert await run == "done"
