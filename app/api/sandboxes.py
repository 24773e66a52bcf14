"""The sandbox resources of the E2B contract, with the fields that are ours.

Both generations of paths are served: newer SDKs call `/v2/sandboxes`, the CLI and older ones `/sandboxes`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from app.api.auth import CurrentTeam
from app.api.dependencies import SandboxServiceDep, SettingsOfApi, SettingsOfApiDep
from app.api.errors import describe_errors
from app.errors import InvalidRequest
from app.ids_and_time import rfc3339
from app.sandboxes.models import (
    BASE_TEMPLATE,
    GATEWAY_TEMPLATE,
    CreateSandbox,
    McpOptions,
    Sandbox,
    ServerStatus,
)
from app.sandboxes.service import SandboxView

ENVD_VERSION = "0.6.13"
"""The agent's contract version as SDKs know it; each of their feature gates is open at this one."""
_CLIENT_ID = "sandgate"
_DISK_MB = 10240
_MAX_TIMEOUT_S = 7 * 24 * 3600

router = APIRouter(tags=["sandboxes"])


class _Wire(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class McpOptionsBody(_Wire):
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


class NewSandbox(_Wire):
    template_id: str | None = Field(
        None, alias="templateID", description="`base` or `mcp-gateway`; the latter is the default when `mcp` is given."
    )
    timeout: int | None = Field(None, ge=0, le=_MAX_TIMEOUT_S, description="Seconds the sandbox lives.")
    metadata: dict[str, str] | None = None
    env_vars: dict[str, str] | None = Field(None, description="Environment of every process in the workspace.")
    allow_internet_access: bool | None = Field(
        None, alias="allow_internet_access", description="`false`: nothing in the sandbox reaches the internet."
    )
    mcp: dict[str, dict[str, Any]] | None = Field(
        None,
        description="MCP servers by catalog key, or `github/<owner>/<repo>`, each with its options and credentials."
        " `{}` is a gateway without servers.",
        examples=[{"time": {}, "git": {}}],
    )
    mcp_options: McpOptionsBody | None = None
    auto_pause: bool = False
    network: dict[str, Any] | None = None
    volume_mounts: list[dict[str, Any]] | None = None
    iam: dict[str, Any] | None = None

    def refuse_what_is_missing(self) -> None:
        """Raises: InvalidRequest for a wish that would otherwise be dropped without a word."""
        wishes = {
            "autoPause": self.auto_pause,
            "network": self.network,
            "volumeMounts": self.volume_mounts,
            "iam": self.iam,
        }
        for field, wish in wishes.items():
            if wish:
                hint = " Use allow_internet_access to shut a sandbox off." if field == "network" else ""
                raise InvalidRequest(f"{field} is not supported by this server yet; leave it out.{hint}")


class ConnectSandbox(_Wire):
    timeout: int | None = Field(None, ge=0, le=_MAX_TIMEOUT_S, description="Seconds the sandbox lives from now on.")


class SandboxTimeout(_Wire):
    timeout: int = Field(le=_MAX_TIMEOUT_S, description="Seconds from now; 0 or less ends the sandbox at once.")


class ServerState(_Wire):
    state: Literal["starting", "ready", "failed"]
    message: str | None = Field(None, description="Why it failed.")
    stderr: list[str] | None = Field(None, description="The last lines it wrote on stderr, if it failed.")


class McpAccess(_Wire):
    url: str = Field(description="Streamable HTTP endpoint with all servers behind it.")
    token: str | None = Field(None, description="Bearer token for the endpoint; answered by create and connect.")
    servers: dict[str, ServerState]


class SandboxAnswer(_Wire):
    template_id: str = Field(alias="templateID")
    sandbox_id: str = Field(alias="sandboxID")
    client_id: str = Field(_CLIENT_ID, alias="clientID")
    envd_version: str = ENVD_VERSION
    envd_access_token: str
    domain: str | None
    mcp: McpAccess | None = None


class ListedSandbox(_Wire):
    template_id: str = Field(alias="templateID")
    sandbox_id: str = Field(alias="sandboxID")
    client_id: str = Field(_CLIENT_ID, alias="clientID")
    started_at: str = Field(description="RFC 3339")
    end_at: str = Field(description="RFC 3339")
    envd_version: str = ENVD_VERSION
    cpu_count: int
    memory_mb: int = Field(alias="memoryMB")
    disk_size_mb: int = Field(_DISK_MB, alias="diskSizeMB")
    state: Literal["running", "paused"] = "running"
    metadata: dict[str, str]


class SandboxDetail(ListedSandbox):
    envd_access_token: str
    domain: str | None
    allow_internet_access: bool | None
    mcp: McpAccess | None = None


def _sandbox_id(sandbox_id: Annotated[str, Path(alias="sandboxID")]) -> str:
    # Older SDKs put a client id behind the sandbox's: `<id>-<client id>`.
    return sandbox_id.partition("-")[0]


SandboxId = Annotated[str, Depends(_sandbox_id)]


@router.post("/v2/sandboxes", status_code=201, responses=describe_errors(400, 404, 413, 424, 500, 503, 507))
async def create_sandbox(
    body: NewSandbox, team: CurrentTeam, service: SandboxServiceDep, settings: SettingsOfApiDep
) -> SandboxAnswer:
    """Start a sandbox, with every MCP server named in `mcp` behind one URL and one token."""
    return await _create(body, team.id, service, settings, default_timeout_s=300)


@router.post("/sandboxes", status_code=201, responses=describe_errors(400, 404, 413, 424, 500, 503, 507))
async def create_sandbox_v1(
    body: NewSandbox, team: CurrentTeam, service: SandboxServiceDep, settings: SettingsOfApiDep
) -> SandboxAnswer:
    """The same for older SDKs; without `timeout` the sandbox lives 15 s."""
    return await _create(body, team.id, service, settings, default_timeout_s=15)


async def _create(
    body: NewSandbox, team_id: str, service: SandboxServiceDep, settings: SettingsOfApi, *, default_timeout_s: int
) -> SandboxAnswer:
    body.refuse_what_is_missing()
    template = body.template_id or (BASE_TEMPLATE if body.mcp is None else GATEWAY_TEMPLATE)
    options = body.mcp_options or McpOptionsBody()
    view = await service.create(
        team_id,
        CreateSandbox(
            template=template,
            timeout_s=default_timeout_s if body.timeout is None else body.timeout,
            metadata=body.metadata or {},
            envs=body.env_vars or {},
            allow_internet_access=body.allow_internet_access,
            mcp=body.mcp,
            mcp_options=McpOptions(**options.model_dump()),
        ),
    )
    return _answer(view, settings)


@router.get("/v2/sandboxes", responses=describe_errors())
async def list_sandboxes(
    team: CurrentTeam,
    service: SandboxServiceDep,
    state: Annotated[str | None, Query(description="`running`, `paused` or both with a comma.")] = None,
) -> list[ListedSandbox]:
    """The team's sandboxes, newest first."""
    if state is not None and "running" not in state.split(","):
        return []
    return [ListedSandbox(**_listed(sandbox)) for sandbox in await service.list(team.id)]


@router.get("/sandboxes/{sandboxID}", responses=describe_errors(404))
async def get_sandbox(
    sandbox_id: SandboxId, team: CurrentTeam, service: SandboxServiceDep, settings: SettingsOfApiDep
) -> SandboxDetail:
    """A sandbox and how its MCP servers are doing."""
    view = await service.get(team.id, sandbox_id)
    return SandboxDetail(
        **_listed(view.sandbox),
        envd_access_token=view.sandbox.secrets.access_token,
        domain=settings.sandbox_domain,
        allow_internet_access=view.sandbox.egress,
        mcp=_mcp(view, settings, with_token=False),
    )


@router.delete("/sandboxes/{sandboxID}", status_code=204, responses=describe_errors(404))
async def kill_sandbox(sandbox_id: SandboxId, team: CurrentTeam, service: SandboxServiceDep) -> Response:
    """End a sandbox and everything in it."""
    await service.kill(team.id, sandbox_id)
    return Response(status_code=204)


@router.post("/v2/sandboxes/{sandboxID}/connect", responses=describe_errors(400, 404))
@router.post("/sandboxes/{sandboxID}/connect", responses=describe_errors(400, 404))
async def connect_sandbox(
    sandbox_id: SandboxId,
    team: CurrentTeam,
    service: SandboxServiceDep,
    settings: SettingsOfApiDep,
    body: ConnectSandbox | None = None,
) -> SandboxAnswer:
    """What create answered, once more. The sandbox then lives at least `timeout` seconds; it is never cut short."""
    timeout_s = 300 if body is None or body.timeout is None else body.timeout
    return _answer(await service.connect(team.id, sandbox_id, timeout_s), settings)


@router.post("/sandboxes/{sandboxID}/timeout", status_code=204, responses=describe_errors(400, 404))
async def set_sandbox_timeout(
    sandbox_id: SandboxId, body: SandboxTimeout, team: CurrentTeam, service: SandboxServiceDep
) -> Response:
    """Let the sandbox end `timeout` seconds from now, sooner or later than before."""
    await service.set_timeout(team.id, sandbox_id, body.timeout)
    return Response(status_code=204)


def _answer(view: SandboxView, settings: SettingsOfApi) -> SandboxAnswer:
    return SandboxAnswer(
        template_id=view.sandbox.template,
        sandbox_id=view.sandbox.id,
        envd_access_token=view.sandbox.secrets.access_token,
        domain=settings.sandbox_domain,
        mcp=_mcp(view, settings, with_token=True),
    )


def _listed(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "template_id": sandbox.template,
        "sandbox_id": sandbox.id,
        "started_at": rfc3339(sandbox.started_at),
        "end_at": rfc3339(sandbox.ends_at),
        "cpu_count": sandbox.cpus,
        "memory_mb": sandbox.memory_mib,
        "metadata": dict(sandbox.metadata),
    }


def _mcp(view: SandboxView, settings: SettingsOfApi, *, with_token: bool) -> McpAccess | None:
    if not view.sandbox.has_gateway:
        return None
    return McpAccess(
        url=f"{settings.public_url}/sandboxes/{view.sandbox.id}/mcp",
        token=view.sandbox.secrets.mcp_token if with_token else None,
        servers={server.name: _server_state(server) for server in view.servers},
    )


def _server_state(server: ServerStatus) -> ServerState:
    stderr = list(server.stderr) if server.state == "failed" else None
    return ServerState(state=server.state, message=server.message, stderr=stderr)
