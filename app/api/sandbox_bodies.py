"""What the sandbox resources take and answer, in the words of the E2B contract and with the fields that are ours."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from app.api.dependencies import SettingsOfApi
from app.api.wire import Asked, Wire, kept_as_json
from app.errors import InvalidRequest
from app.ids_and_time import rfc3339
from app.sandboxes.models import (
    CreateSandbox,
    Lifecycle,
    McpOptions,
    MountedVolume,
    PauseMode,
    Sandbox,
    ServerStatus,
)
from app.sandboxes.network_rules import NetworkRules
from app.sandboxes.service import MOST_FORKS, SandboxView
from app.templates import BASE_TEMPLATE, GATEWAY_TEMPLATE

ENVD_VERSION = "0.6.13"
"""The agent's contract version as SDKs know it; each of their feature gates is open at this one."""
MAX_TIMEOUT_S = 7 * 24 * 3600
DEFAULT_TIMEOUT_S = 300

_CLIENT_ID = "sandgate"
_PAUSE_MODES = {PauseMode.MEMORY: "full", PauseMode.FILESYSTEM: "filesystem"}
_DISK_MB = 10240


NetworkBody = Annotated[dict[str, Any], BeforeValidator(kept_as_json)]


# -- what callers send -------------------------------------------------------------------------------------------------


class ToolRules(Wire):
    """Which tools of a server are listed and can be called, and how they look. By the server's own names."""

    allow: list[str] | None = Field(None, description="Globs; absent: all.")
    deny: list[str] = Field(default_factory=list, description="Globs; wins over `allow`.")
    rename: dict[str, str] = Field(default_factory=dict, description="Own name to new name.")
    describe: dict[str, str] = Field(default_factory=dict, description="Own name to description.")


class McpOptionsBody(Wire):
    """How the MCP servers are started and named."""

    wait: bool = Field(True, description="Answer once no server is starting any more.")
    on_failure: Literal["fail", "degrade"] = Field(
        "fail",
        description="`fail`: a server that does not come up fails the create. `degrade`: it is marked as failed.",
    )
    naming: Literal["auto", "always"] = Field(
        "auto", description="Put `<server>_` in front of tool and prompt names that collide, or of all."
    )
    placement: dict[str, Literal["gateway", "workspace"]] = Field(
        default_factory=dict, description="Server key to where it runs, instead of what the catalog says."
    )
    tools: dict[str, ToolRules] = Field(default_factory=dict, description="Server key to what is shown of its tools.")
    discovery: bool = Field(
        False, description="List three tools, to search, describe and call the others, in the place of all."
    )
    start: Literal["eager", "lazy"] = Field(
        "eager", description="Start a server whose tools are remembered at once, or when it is first called."
    )

    def to_options(self) -> McpOptions:
        rules = {key: tools.model_dump(exclude_unset=True) for key, tools in self.tools.items()}
        return McpOptions(**{**self.model_dump(), "tools": rules})


class VolumeMountBody(Wire):
    name: str = Field(max_length=128)
    path: str = Field(max_length=4096, description="Absolute path in the workspace.")


class AutoResumeBody(Wire):
    enabled: bool = False


class NewSandbox(Asked):
    template_id: str | None = Field(
        None,
        alias="templateID",
        max_length=256,
        description="A template's id or name, `name:tag`, or a snapshot's id. Default: `base`, or `mcp-gateway` when"
        " `mcp` is given.",
    )
    timeout: int | None = Field(None, ge=0, le=MAX_TIMEOUT_S, description="Seconds the sandbox lives.")
    auto_pause: bool = Field(False, description="Pause the sandbox at its time-out instead of ending it.")
    auto_pause_memory: bool | None = Field(None, description="`false`: such a pause keeps the files only.")
    auto_resume: AutoResumeBody | None = Field(None, description="Whether traffic wakes a paused sandbox.")
    metadata: dict[str, str] | None = None
    env_vars: dict[str, str] | None = Field(None, description="Environment of every process in the workspace.")
    allow_internet_access: bool | None = Field(
        None, alias="allow_internet_access", description="`false`: nothing in the sandbox reaches the internet."
    )
    network: dict[str, Any] | None = Field(None, description="What the sandbox may reach and who may reach it.")
    mcp: dict[str, dict[str, Any]] | None = Field(
        None,
        description="MCP servers by catalog key, or `github/<owner>/<repo>`, each with its options and credentials."
        " `{}` is a gateway without servers.",
        examples=[{"time": {}, "git": {}}],
    )
    mcp_options: McpOptionsBody | None = None
    volume_mounts: list[VolumeMountBody] | None = Field(None, description="Volumes by name, each at a path of its own.")
    iam: dict[str, Any] | None = None

    def wanted_mounts(self) -> list[tuple[str, str]]:
        """Name and path of each."""
        return [(mount.name, mount.path) for mount in self.volume_mounts or ()]

    def to_request(self, mounts: tuple[MountedVolume, ...]) -> CreateSandbox:
        """`mounts` are the volumes it wants. Raises: InvalidRequest, naming the field."""
        if self.iam:
            raise InvalidRequest("iam is not supported by this server: leave it out.")
        options = self.mcp_options or McpOptionsBody()
        keeps_memory = self.auto_pause_memory is not False
        resumes = self.auto_resume is not None and self.auto_resume.enabled
        return CreateSandbox(
            template=self.template_id or (BASE_TEMPLATE if self.mcp is None else GATEWAY_TEMPLATE),
            timeout_s=DEFAULT_TIMEOUT_S if self.timeout is None else self.timeout,
            metadata=self.metadata or {},
            envs=self.env_vars or {},
            network=NetworkRules.parse(self.network, allow_internet_access=self.allow_internet_access),
            mcp=self.mcp,
            mcp_options=options.to_options(),
            lifecycle=Lifecycle(
                on_timeout="pause" if self.auto_pause else "kill",
                pause_mode=PauseMode.MEMORY if keeps_memory else PauseMode.FILESYSTEM,
                auto_resume=resumes,
            ),
            mounts=mounts,
        )


class ConnectSandbox(Wire):
    timeout: int | None = Field(None, ge=0, le=MAX_TIMEOUT_S, description="Seconds the sandbox lives from now on.")
    memory: bool | None = Field(None, description="`false`: a paused sandbox is resumed with its files only.")


class ChangeServers(Asked):
    """A merge: servers that are not named stay as they are."""

    mcp: dict[str, dict[str, Any] | None] = Field(
        default_factory=dict, description="Server key to its options; null removes it."
    )
    mcp_options: McpOptionsBody | None = Field(None, description="Takes the place of what was given before.")


class PauseSandbox(Wire):
    memory: bool | None = Field(None, description="`false`: keep the files only; processes end.")
    require_healthy_guest: bool = Field(False, description="Answer 409 and pause nothing if its agent is unresponsive.")


class SandboxTimeout(Wire):
    timeout: int = Field(
        ge=-MAX_TIMEOUT_S, le=MAX_TIMEOUT_S, description="Seconds from now; 0 or less ends the sandbox at once."
    )


class SandboxRefresh(Wire):
    duration: int | None = Field(None, ge=0, le=3600, description="Seconds the sandbox lives at least from now on.")


class NewSnapshot(Asked):
    name: str | None = Field(None, max_length=256, description="`name` or `name:tag`, to be used as a template.")


class ForkSandbox(Wire):
    timeout: int | None = Field(None, ge=0, le=MAX_TIMEOUT_S, description="Seconds each copy lives.")
    count: int | None = Field(None, ge=1, le=MOST_FORKS)


# -- what they are answered --------------------------------------------------------------------------------------------


class ServerState(Wire):
    state: Literal["idle", "starting", "ready", "failed", "paused"]
    listed: bool = Field(False, description="Whether its tools are listed; they may be before it is ready.")
    message: str | None = Field(None, description="Why it failed.")
    stderr: list[str] | None = Field(None, description="The last lines it wrote on stderr, if it failed.")


class McpAccess(Wire):
    url: str = Field(description="Streamable HTTP endpoint with all servers behind it.")
    token: str | None = Field(None, description="Bearer token for the endpoint; answered by create and connect.")
    servers: dict[str, ServerState]

    @classmethod
    def of(cls, view: SandboxView, settings: SettingsOfApi, *, with_token: bool = False) -> McpAccess | None:
        """None for a sandbox without a gateway."""
        if not view.sandbox.has_gateway:
            return None
        return cls(
            url=f"{settings.public_url}/sandboxes/{view.sandbox.id}/mcp",
            token=view.sandbox.secrets.mcp_token if with_token else None,
            servers={server.name: _server_state(server) for server in view.servers},
        )


class SandboxAnswer(Wire):
    template_id: str = Field(alias="templateID")
    sandbox_id: str = Field(alias="sandboxID")
    client_id: str = Field(_CLIENT_ID, alias="clientID")
    alias: str
    envd_version: str = ENVD_VERSION
    envd_access_token: str
    traffic_access_token: str | None
    domain: str | None
    mcp: McpAccess | None = None

    @classmethod
    def of(cls, view: SandboxView, settings: SettingsOfApi) -> SandboxAnswer:
        return cls(
            template_id=view.sandbox.template.template_id,
            sandbox_id=view.sandbox.id,
            alias=view.sandbox.template.name,
            envd_access_token=view.sandbox.secrets.access_token,
            traffic_access_token=view.sandbox.secrets.traffic_token,
            domain=settings.sandbox_domain,
            mcp=McpAccess.of(view, settings, with_token=True),
        )


class LifecycleAnswer(Wire):
    on_timeout: Literal["kill", "pause"]
    auto_resume: bool


class ListedSandbox(Wire):
    template_id: str = Field(alias="templateID")
    sandbox_id: str = Field(alias="sandboxID")
    client_id: str = Field(_CLIENT_ID, alias="clientID")
    alias: str
    started_at: str = Field(description="RFC 3339")
    end_at: str = Field(description="RFC 3339")
    envd_version: str = ENVD_VERSION
    cpu_count: int
    memory_mb: int = Field(alias="memoryMB")
    disk_size_mb: int = Field(_DISK_MB, alias="diskSizeMB")
    state: Literal["running", "paused"]
    metadata: dict[str, str]
    pause_mode: Literal["full", "filesystem"] | None = Field(None, description="What its pause kept.")

    @classmethod
    def of(cls, sandbox: Sandbox) -> ListedSandbox:
        return cls(**_listed(sandbox))


class SandboxDetail(ListedSandbox):
    envd_access_token: str
    domain: str | None
    allow_internet_access: bool
    network: dict[str, Any]
    lifecycle: LifecycleAnswer
    volume_mounts: list[VolumeMountBody]
    mcp: McpAccess | None = None

    @classmethod
    def of_view(cls, view: SandboxView, settings: SettingsOfApi) -> SandboxDetail:
        sandbox = view.sandbox
        return cls(
            **_listed(sandbox),
            envd_access_token=sandbox.secrets.access_token,
            domain=settings.sandbox_domain,
            allow_internet_access=sandbox.network.allow_internet_access,
            network=sandbox.network.to_wire(),
            lifecycle=LifecycleAnswer(
                on_timeout=sandbox.lifecycle.on_timeout, auto_resume=sandbox.lifecycle.auto_resume
            ),
            volume_mounts=[VolumeMountBody(name=mount.name, path=mount.path) for mount in sandbox.mounts],
            mcp=McpAccess.of(view, settings),
        )


class ProblemOfOne(Wire):
    code: int
    message: str


class ForkAnswer(Wire):
    """One copy: what a create answers, or why there is none."""

    sandbox: SandboxAnswer | None = None
    error: ProblemOfOne | None = None


class SnapshotAnswer(Wire):
    snapshot_id: str = Field(alias="snapshotID", description="Usable as a `templateID`.")
    names: list[str]


def _listed(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "template_id": sandbox.template.template_id,
        "sandbox_id": sandbox.id,
        "alias": sandbox.template.name,
        "started_at": rfc3339(sandbox.started_at),
        "end_at": rfc3339(sandbox.ends_at),
        "cpu_count": sandbox.cpus,
        "memory_mb": sandbox.memory_mib,
        "state": "running" if sandbox.pause_mode is None else "paused",
        "metadata": dict(sandbox.metadata),
        "pause_mode": None if sandbox.pause_mode is None else _PAUSE_MODES[sandbox.pause_mode],
    }


def _server_state(server: ServerStatus) -> ServerState:
    stderr = list(server.stderr) if server.state == "failed" else None
    return ServerState(state=server.state, listed=server.listed, message=server.message, stderr=stderr)
