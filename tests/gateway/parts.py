"""Parts of a gateway for tests that look at one of them inside this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sandgate_gateway.control_plane_requests import ControlPlaneRequests
from sandgate_gateway.gateway import Gateway
from sandgate_gateway.servers.fleet import Fleet
from sandgate_gateway.upstreams.bridges import Bridges


def empty_fleet(folder: Path) -> Fleet:
    return Fleet(
        folder,
        own_users=False,
        bridges=Bridges(folder / "gateway.sock"),
        requests=ControlPlaneRequests(),
        changed=lambda: None,
        on_notification=lambda server, method, params: None,
    )


@asynccontextmanager
async def assembled_gateway(folder: Path, requests: ControlPlaneRequests) -> AsyncIterator[Gateway]:
    """One that listens nowhere."""
    gateway = Gateway(folder, requests, bridge_socket=folder / "bridges.sock", own_users=False)
    try:
        yield gateway
    finally:
        await gateway.close()
