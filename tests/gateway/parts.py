"""Parts of a gateway for tests that look at one of them inside this process."""

from pathlib import Path

from sandgate_gateway.control_plane_requests import ControlPlaneRequests
from sandgate_gateway.servers.fleet import Fleet


def empty_fleet(folder: Path) -> Fleet:
    return Fleet(
        folder,
        own_users=False,
        requests=ControlPlaneRequests(),
        changed=lambda: None,
        on_notification=lambda server, method, params: None,
    )
