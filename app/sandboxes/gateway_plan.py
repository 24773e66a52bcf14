"""What the MCP servers of a sandbox were rendered to: what its gateway is told, and the containers it has for them.

It is recorded with the sandbox, encrypted, so that a sandbox that runs does not depend on what becomes of the catalog.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Self

from pydantic import TypeAdapter

from app.catalog.container_tools import ContainerTool
from app.catalog.package import Package
from app.engines.interface import ContainerSpec, Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerTools:
    """A server whose tools are a container per call."""

    tools: tuple[ContainerTool, ...]
    env: Mapping[str, str] = field(repr=False)
    """Of every container."""
    limits: Limits
    has_network: bool

    def find(self, name: str) -> ContainerTool | None:
        return next((tool for tool in self.tools if tool.name == name), None)

    def pinned(self, images: Mapping[str, str]) -> Self:
        return replace(self, tools=tuple(_pinned(tool, images) for tool in self.tools))


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPlan:
    servers: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    """`servers` of the gateway's configuration; docs/ARCHITECTURE.md, section 6.4."""
    image_servers: Mapping[str, ContainerSpec] = field(default_factory=dict)
    """Server key -> the container it runs in, attached to the pod."""
    container_tools: Mapping[str, ContainerTools] = field(default_factory=dict)
    """Server key -> what calls of its tools run."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Server key -> what its lists depend on; only those whose lists may be remembered."""
    packages: Mapping[str, Package] = field(default_factory=dict)
    """Server key -> what has to be installed before it starts."""

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(server["name"] for server in self.servers)

    @property
    def needs_workspace(self) -> bool:
        """Whether a server runs in the workspace."""
        return any(server["transport"]["type"] == "workspace" for server in self.servers)

    @property
    def fetched_keys(self) -> frozenset[str]:
        """Servers that need something which may have to be fetched first."""
        return frozenset((*self.packages, *self.image_servers, *self.container_tools))

    def images(self) -> dict[str, frozenset[str]]:
        """Server key -> the images that the server needs; only those that need any."""
        of_tools = {
            key: frozenset(tool.container.image for tool in server.tools)
            for key, server in self.container_tools.items()
        }
        return {key: frozenset([container.image]) for key, container in self.image_servers.items()} | of_tools

    def only(self, keys: Collection[str]) -> Self:
        """The same without every other server."""
        return replace(
            self,
            servers=tuple(server for server in self.servers if server["name"] in keys),
            image_servers={key: value for key, value in self.image_servers.items() if key in keys},
            container_tools={key: value for key, value in self.container_tools.items() if key in keys},
            fingerprints={key: value for key, value in self.fingerprints.items() if key in keys},
            packages={key: value for key, value in self.packages.items() if key in keys},
        )

    def without(self, keys: Collection[str]) -> Self:
        return self.only(self.keys.difference(keys)) if keys else self

    def pinned(self, images: Mapping[str, str]) -> Self:
        """The same with the names that `images` has for some images."""
        return replace(
            self,
            image_servers={
                key: replace(container, image=images.get(container.image, container.image))
                for key, container in self.image_servers.items()
            },
            container_tools={key: server.pinned(images) for key, server in self.container_tools.items()},
        )

    def as_json(self) -> dict[str, Any]:
        """Holds credentials."""
        dumped: dict[str, Any] = _adapter().dump_python(self, mode="json", by_alias=True)
        return dumped

    @staticmethod
    def from_json(dumped: object) -> GatewayPlan:
        return _adapter().validate_python(dumped)


def _pinned(tool: ContainerTool, images: Mapping[str, str]) -> ContainerTool:
    image = images.get(tool.container.image, tool.container.image)
    return tool.model_copy(update={"container": tool.container.model_copy(update={"image": image})})


@cache
def _adapter() -> TypeAdapter[GatewayPlan]:
    return TypeAdapter(GatewayPlan)
