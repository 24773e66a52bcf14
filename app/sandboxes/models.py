"""The values of the sandbox room. Plain and frozen; what holds a secret hides it from `repr`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from app.sandboxes.gateway_plan import GatewayPlan
from app.sandboxes.network_rules import NetworkRules
from app.templates import ResolvedTemplate


@dataclass(frozen=True, slots=True)
class MountedVolume:
    """A volume and where a workspace has it."""

    volume_id: str
    name: str
    path: str


class Status(StrEnum):
    """Where a sandbox is. `target` holds RUNNING, PAUSED or STOPPED: where it should be."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class PauseMode(StrEnum):
    """What a paused sandbox keeps."""

    MEMORY = "memory"
    """Everything: its processes are frozen."""
    FILESYSTEM = "filesystem"
    """Its files: the processes are ended, and a resume is like a boot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifecycle:
    on_timeout: Literal["kill", "pause"] = "kill"
    pause_mode: PauseMode = PauseMode.MEMORY
    """Of a pause at the time-out."""
    auto_resume: bool = False
    """Whether traffic wakes the sandbox, if its pause kept the memory."""


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
    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Server key -> `allow`, `deny`, `rename` and `describe`, as the gateway takes them."""
    discovery: bool = False
    """Whether three tools to find and call the others take the place of the whole list."""
    start: Literal["eager", "lazy"] = "eager"
    """Whether a server whose lists are remembered starts at once or when it is first called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSandbox:
    """What a caller asks for, already checked for its form."""

    template: str
    timeout_s: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    envs: Mapping[str, str] = field(default_factory=dict, repr=False)
    network: NetworkRules = NetworkRules()
    mcp: Mapping[str, Mapping[str, Any]] | None = field(default=None, repr=False)
    """Server key -> its options, credentials among them. None: no gateway is asked for."""
    mcp_options: McpOptions = McpOptions()
    lifecycle: Lifecycle = Lifecycle()
    mounts: tuple[MountedVolume, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSecrets:
    access_token: str = field(repr=False)
    """What the SDKs send to the agent as X-Access-Token."""
    envs: Mapping[str, str] = field(repr=False)
    mcp: Mapping[str, Mapping[str, Any]] = field(repr=False)
    mcp_options: McpOptions
    gateway: GatewayPlan | None = field(default=None, repr=False)
    """What `mcp` came to; None without a gateway. It lacks the servers that could not be prepared."""
    mcp_token: str | None = field(default=None, repr=False)
    """The bearer token handed out at creation; None without a gateway."""
    traffic_token: str | None = field(default=None, repr=False)
    """What requests for services in the sandbox show where its traffic is not public."""
    caller_mcp_token: str | None = field(default=None, repr=False)
    """One more token, chosen by whoever ran `mcp-gateway --config` in the workspace; valid beside the other."""

    @property
    def mcp_tokens(self) -> tuple[str, ...]:
        return tuple(token for token in (self.mcp_token, self.caller_mcp_token) if token is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    id: str
    team_id: str
    template: ResolvedTemplate
    status: Status
    target: Status
    created_at: datetime
    started_at: datetime
    ends_at: datetime
    """Means nothing while the sandbox is paused: its clock stands still."""
    timeout_s: int
    """The lifetime it was given last; what it gets when traffic wakes it."""
    lifecycle: Lifecycle
    pause_mode: PauseMode | None
    """What was kept, while it is paused or about to be."""
    metadata: Mapping[str, str]
    network: NetworkRules
    has_egress: bool
    """False: its pod was made without any way out, which no rule can change."""
    mounts: tuple[MountedVolume, ...]
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
    secrets: PodSecrets
    sandbox_id: str | None
    """None for one that waits warm."""
    recipe: str | None = None
    """What a warm pod was made by; see `planning.recipe_of`."""
    address: str | None = None
    """Where it was reached last; None before its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """How one MCP server of a sandbox is doing."""

    name: str
    state: Literal["idle", "starting", "ready", "failed", "paused"]
    """`idle`: its lists are known and nobody has needed it yet."""
    listed: bool = False
    """Whether its tools are in the gateway's list, be it from memory."""
    digest: str | None = None
    """Of what it listed itself since it started."""
    message: str | None = None
    stderr: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSandbox:
    """A sandbox that can be reached, or could be if it were resumed."""

    sandbox: Sandbox
    pod: PodRecord
    address: str | None
    """None while it is paused."""

    @property
    def sandbox_id(self) -> str:
        return self.sandbox.id

    @property
    def access_token(self) -> str:
        return self.sandbox.secrets.access_token

    @property
    def dial_token(self) -> str:
        """What the agent wants to see before it connects to a loopback port of the workspace."""
        return self.pod.secrets.stdio_token

    @property
    def traffic_access_token(self) -> str | None:
        return self.sandbox.secrets.traffic_token

    @property
    def mask_request_host(self) -> str | None:
        return self.sandbox.network.mask_request_host

    @property
    def may_resume(self) -> bool:
        """Whether traffic may wake it. A filesystem-only pause lasts until somebody connects."""
        return self.sandbox.lifecycle.auto_resume and self.sandbox.pause_mode is PauseMode.MEMORY
