"""The servers of a gateway while their configuration changes."""

import asyncio
from pathlib import Path
from typing import Any

from sandgate_gateway.configuration import Configuration, parse_configuration
from sandgate_gateway.control_plane_requests import ControlPlaneRequests

from tests.gateway.parts import assembled_gateway
from tests.waiting import BOUND_S

NEVER_CALLS = {"type": "bridge", "token": "of-an-image-server"}
READY_AT_ONCE = {"type": "containers", "tools": []}


def configuration(transport: dict[str, Any]) -> Configuration:
    return parse_configuration({"servers": [{"name": "s", "startTimeoutS": 10 * BOUND_S, "transport": transport}]})


async def test_whoever_waits_for_a_server_to_settle_waits_for_the_one_that_replaces_it(tmp_path: Path) -> None:
    async with asyncio.timeout(BOUND_S), assembled_gateway(tmp_path, ControlPlaneRequests()) as gateway:
        await gateway.configure(configuration(NEVER_CALLS))
        async with asyncio.TaskGroup() as group:
            group.create_task(gateway.fleet.settled())
            await asyncio.sleep(0)  # it waits now
            await gateway.configure(configuration(READY_AT_ONCE))
        assert [server.state for server in gateway.fleet.servers] == ["ready"]
