"""Parts of a gateway for tests that look at one of them inside this process."""

from pathlib import Path

from sandgate_gateway.control_plane_requests import ControlPlaneRequests
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
