"""What the MCP servers of a sandbox were rendered to: what its gateway is told, and the containers it has for them.

It is recorded with the sandbox, encrypted, so that a sandbox that runs does not depend on what becomes of the catalog.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Self

from pydantic import TypeAdapter

from app.catalog.package import Package
from app.engines.interface import ContainerSpec
from app.sandboxes.server_containers import SOCKETS


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPlan:
    servers: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    """`servers` of the gateway's configuration; docs/ARCHITECTURE.md, section 6.4."""
    image_servers: Mapping[str, ContainerSpec] = field(default_factory=dict)
    """Server key -> the container it runs in, attached to the pod."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Server key -> what its lists depend on; only those whose lists may be remembered."""
    packages: Mapping[str, Package] = field(default_factory=dict)
    """Server key -> what has to be installed before it starts."""
    sockets: int = SOCKETS
    """How many image servers there is room for in the pod."""

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(server["name"] for server in self.servers)

    @property
    def needs_workspace(self) -> bool:
        """Whether a server runs in the workspace."""
        return any(server["transport"]["type"] == "workspace" for server in self.servers)

    def only(self, keys: Collection[str]) -> Self:
        """The same without every other server."""
        return replace(
            self,
            servers=tuple(server for server in self.servers if server["name"] in keys),
            image_servers={key: value for key, value in self.image_servers.items() if key in keys},
            fingerprints={key: value for key, value in self.fingerprints.items() if key in keys},
            packages={key: value for key, value in self.packages.items() if key in keys},
        )

    def without(self, keys: Collection[str]) -> Self:
        return self.only(self.keys.difference(keys)) if keys else self

    def pinned(self, images: Mapping[str, str]) -> Self:
        """The same with other names for the images of some servers."""
        named = {key: replace(self.image_servers[key], image=image) for key, image in images.items()}
        return replace(self, image_servers={**self.image_servers, **named})

    def as_json(self) -> dict[str, Any]:
        """Holds credentials."""
        dumped: dict[str, Any] = _adapter().dump_python(self, mode="json", by_alias=True)
        return dumped

    @staticmethod
    def from_json(dumped: object) -> GatewayPlan:
        return _adapter().validate_python(dumped)


@cache
def _adapter() -> TypeAdapter[GatewayPlan]:
    return TypeAdapter(GatewayPlan)
