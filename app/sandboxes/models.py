"""The values of the sandbox room. Plain and frozen; what holds a secret hides it from `repr`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

BASE_TEMPLATE = "base"
GATEWAY_TEMPLATE = "mcp-gateway"


class Status(StrEnum):
    """Where a sandbox is. `target` holds RUNNING or STOPPED: where it should be."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class McpOptions:
    wait: bool = True
    """Whether a create answers only once no server is starting any more."""
    on_failure: Literal["fail", "degrade"] = "fail"
    """Whether a server that does not come up fails the create or is only marked as failed."""
    naming: Literal["auto", "always"] = "auto"
    """Whether tool names get their server's name in front on collision only, or always."""
    placement: Mapping[str, Literal["gateway", "workspace"]] = field(default_factory=dict)
    """Server key -> where it runs, instead of what its catalog entry says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSandbox:
    """What a caller asks for, already checked for its form."""

    template: str
    timeout_s: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    envs: Mapping[str, str] = field(default_factory=dict, repr=False)
    allow_internet_access: bool | None = None
    mcp: Mapping[str, Mapping[str, Any]] | None = field(default=None, repr=False)
    """Server key -> its options, credentials among them. None: no gateway is asked for."""
    mcp_options: McpOptions = McpOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSecrets:
    access_token: str = field(repr=False)
    """What the SDKs send to the agent as X-Access-Token."""
    envs: Mapping[str, str] = field(repr=False)
    mcp: Mapping[str, Mapping[str, Any]] = field(repr=False)
    mcp_options: McpOptions
    mcp_token: str | None = field(repr=False)
    """The bearer token handed out at creation; None without a gateway."""
    caller_mcp_token: str | None = field(default=None, repr=False)
    """One more token, chosen by whoever ran `mcp-gateway --config` in the workspace; valid beside the other."""

    @property
    def mcp_tokens(self) -> tuple[str, ...]:
        return tuple(token for token in (self.mcp_token, self.caller_mcp_token) if token is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    id: str
    team_id: str
    template: str
    status: Status
    target: Status
    created_at: datetime
    started_at: datetime
    ends_at: datetime
    metadata: Mapping[str, str]
    egress: bool | None
    """What the caller said of internet access; None if nothing."""
    has_gateway: bool
    cpus: int
    memory_mib: int
    secrets: SandboxSecrets


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSecrets:
    agent_token: str = field(repr=False)
    gateway_token: str = field(repr=False)
    stdio_token: str = field(repr=False)
    """What the gateway shows at the agent's stdio door."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRecord:
    id: str
    sandbox_id: str
    secrets: PodSecrets


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """How one MCP server of a sandbox is doing."""

    name: str
    state: Literal["starting", "ready", "failed"]
    message: str | None = None
    stderr: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSandbox:
    """A running sandbox and where it is reached."""

    sandbox: Sandbox
    pod: PodRecord
    address: str

    @property
    def sandbox_id(self) -> str:
        return self.sandbox.id

    @property
    def access_token(self) -> str:
        return self.sandbox.secrets.access_token
