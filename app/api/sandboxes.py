"""The sandbox resources of the E2B contract.

Both generations of paths are served: newer SDKs call `/v2/sandboxes`, the CLI and older ones `/sandboxes`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal
from urllib.parse import unquote_plus

from fastapi import APIRouter, Depends, Header, Path, Query, Response

from app.api.auth import CurrentTeam
from app.api.dependencies import SandboxServiceDep, SettingsOfApiDep, VolumesDep
from app.api.errors import describe_errors
from app.api.sandbox_bodies import (
    DEFAULT_TIMEOUT_S,
    ChangeServers,
    ConnectSandbox,
    ForkAnswer,
    ForkSandbox,
    ListedSandbox,
    McpAccess,
    NetworkBody,
    NewSandbox,
    NewSnapshot,
    PauseSandbox,
    ProblemOfOne,
    SandboxAnswer,
    SandboxDetail,
    SandboxRefresh,
    SandboxTimeout,
    SnapshotAnswer,
)
from app.errors import InvalidRequest, Problem
from app.sandboxes.listing import Listing
from app.sandboxes.models import PauseMode, Status

_DEFAULT_TIMEOUT_V1_S = 15
_DEFAULT_REFRESH_S = 60

router = APIRouter(tags=["sandboxes"])


def _sandbox_id(sandbox_id: Annotated[str, Path(alias="sandboxID")]) -> str:
    # Older SDKs put a client id behind the sandbox's: `<id>-<client id>`.
    return sandbox_id.partition("-")[0]


SandboxId = Annotated[str, Depends(_sandbox_id)]
IdempotencyKey = Annotated[
    str | None,
    Header(max_length=255, description="A repeated create with the same key and body answers the same sandbox."),
]
NextToken = Annotated[str | None, Query(alias="nextToken", description="`x-next-token` of the page before.")]


@router.post("/v2/sandboxes", status_code=201, responses=describe_errors(400, 404, 409, 413, 424, 500, 503, 507))
async def create_sandbox(
    body: NewSandbox,
    team: CurrentTeam,
    service: SandboxServiceDep,
    volumes: VolumesDep,
    settings: SettingsOfApiDep,
    idempotency_key: IdempotencyKey = None,
) -> SandboxAnswer:
    """Start a sandbox, with every MCP server named in `mcp` behind one URL and one token."""
    mounts = await volumes.resolve_mounts(team.id, body.wanted_mounts())
    request = body.to_request(mounts)
    return SandboxAnswer.of(await service.create(team.id, request, idempotency_key=idempotency_key), settings)


@router.post("/sandboxes", status_code=201, responses=describe_errors(400, 404, 409, 413, 424, 500, 503, 507))
async def create_sandbox_v1(
    body: NewSandbox,
    team: CurrentTeam,
    service: SandboxServiceDep,
    volumes: VolumesDep,
    settings: SettingsOfApiDep,
    idempotency_key: IdempotencyKey = None,
) -> SandboxAnswer:
    """The same for older SDKs; without `timeout` the sandbox lives 15 s."""
    if body.timeout is None:
        body.timeout = _DEFAULT_TIMEOUT_V1_S
    return await create_sandbox(body, team, service, volumes, settings, idempotency_key)


@router.get("/v2/sandboxes", response_model_exclude_none=True, responses=describe_errors(400))
async def list_sandboxes(
    response: Response,
    team: CurrentTeam,
    service: SandboxServiceDep,
    state: Annotated[str | None, Query(description="`running`, `paused` or both with a comma.")] = None,
    metadata: Annotated[str | None, Query(description="`key=value&…`, each part encoded, and the whole again.")] = None,
    template: Annotated[str | None, Query(description="A template's id or name.")] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="By start; newest first is the default.")] = "desc",
    started_after: Annotated[datetime | None, Query(alias="startedAfter", description="Inclusive; RFC 3339.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
    next_token: NextToken = None,
) -> list[ListedSandbox]:
    """The team's sandboxes. The header `x-next-token` is there if there are more."""
    listing = Listing(
        states=_states(state),
        metadata=_metadata(metadata),
        template=template,
        started_after=_in_utc(started_after),
        is_ascending=order == "asc",
        limit=limit,
        cursor=next_token,
    )
    page = await service.page(team.id, listing)
    if page.cursor is not None:
        response.headers["X-Next-Token"] = page.cursor
    return [ListedSandbox.of(sandbox) for sandbox in page.sandboxes]


@router.get("/sandboxes", response_model_exclude_none=True, responses=describe_errors(400))
async def list_sandboxes_v1(
    team: CurrentTeam,
    service: SandboxServiceDep,
    metadata: Annotated[str | None, Query(description="As for `/v2/sandboxes`.")] = None,
) -> list[ListedSandbox]:
    """All running sandboxes of the team, for older SDKs."""
    found: list[ListedSandbox] = []
    cursor: str | None = None
    while True:
        listing = Listing(states=(Status.RUNNING,), metadata=_metadata(metadata), cursor=cursor)
        page = await service.page(team.id, listing)
        found += [ListedSandbox.of(sandbox) for sandbox in page.sandboxes]
        if (cursor := page.cursor) is None:
            return found


@router.get("/sandboxes/{sandboxID}", response_model_exclude_none=True, responses=describe_errors(404))
async def get_sandbox(
    sandbox_id: SandboxId, team: CurrentTeam, service: SandboxServiceDep, settings: SettingsOfApiDep
) -> SandboxDetail:
    """A sandbox and how its MCP servers are doing."""
    return SandboxDetail.of_view(await service.get(team.id, sandbox_id), settings)


@router.delete("/sandboxes/{sandboxID}", status_code=204, responses=describe_errors(404))
async def kill_sandbox(sandbox_id: SandboxId, team: CurrentTeam, service: SandboxServiceDep) -> Response:
    """End a sandbox and everything in it."""
    await service.kill(team.id, sandbox_id)
    return Response(status_code=204)


@router.post("/v2/sandboxes/{sandboxID}/connect", responses=describe_errors(400, 404, 409, 424, 500, 503))
@router.post("/sandboxes/{sandboxID}/connect", responses=describe_errors(400, 404, 409, 424, 500, 503))
async def connect_sandbox(
    response: Response,
    sandbox_id: SandboxId,
    team: CurrentTeam,
    service: SandboxServiceDep,
    settings: SettingsOfApiDep,
    body: ConnectSandbox | None = None,
) -> SandboxAnswer:
    """What create answered, once more; resumes a paused sandbox, and says so with 201.

    The sandbox then lives at least `timeout` seconds; it is never cut short.
    """
    body = body or ConnectSandbox()
    timeout_s = DEFAULT_TIMEOUT_S if body.timeout is None else body.timeout
    view, was_resumed = await service.connect(team.id, sandbox_id, timeout_s, reboot=body.memory is False)
    response.status_code = 201 if was_resumed else 200
    return SandboxAnswer.of(view, settings)


@router.post("/sandboxes/{sandboxID}/resume", status_code=201, responses=describe_errors(400, 404, 409, 424, 500, 503))
async def resume_sandbox(
    sandbox_id: SandboxId,
    team: CurrentTeam,
    service: SandboxServiceDep,
    settings: SettingsOfApiDep,
    body: ConnectSandbox | None = None,
) -> SandboxAnswer:
    """Resume a paused sandbox, for older SDKs; newer ones connect."""
    timeout_s = _DEFAULT_TIMEOUT_V1_S if body is None or body.timeout is None else body.timeout
    return SandboxAnswer.of(await service.resume(team.id, sandbox_id, timeout_s), settings)


@router.post("/sandboxes/{sandboxID}/pause", status_code=204, responses=describe_errors(400, 404, 409, 500, 503))
async def pause_sandbox(
    sandbox_id: SandboxId, team: CurrentTeam, service: SandboxServiceDep, body: PauseSandbox | None = None
) -> Response:
    """Freeze a sandbox until somebody connects; its time stands still meanwhile."""
    body = body or PauseSandbox()
    mode = PauseMode.FILESYSTEM if body.memory is False else PauseMode.MEMORY
    await service.pause(team.id, sandbox_id, mode, only_healthy=body.require_healthy_guest)
    return Response(status_code=204)


@router.post("/sandboxes/{sandboxID}/timeout", status_code=204, responses=describe_errors(400, 404))
async def set_sandbox_timeout(
    sandbox_id: SandboxId, body: SandboxTimeout, team: CurrentTeam, service: SandboxServiceDep
) -> Response:
    """Let the sandbox end `timeout` seconds from now, sooner or later than before."""
    await service.set_timeout(team.id, sandbox_id, body.timeout)
    return Response(status_code=204)


@router.post("/sandboxes/{sandboxID}/refreshes", status_code=204, responses=describe_errors(400, 404))
async def refresh_sandbox(
    sandbox_id: SandboxId, team: CurrentTeam, service: SandboxServiceDep, body: SandboxRefresh | None = None
) -> Response:
    """Let the sandbox live at least `duration` seconds from now on."""
    duration_s = _DEFAULT_REFRESH_S if body is None or body.duration is None else body.duration
    await service.refresh(team.id, sandbox_id, duration_s)
    return Response(status_code=204)


@router.patch("/sandboxes/{sandboxID}/mcp", responses=describe_errors(400, 404, 409, 424, 500, 503))
async def change_servers(
    sandbox_id: SandboxId,
    body: ChangeServers,
    team: CurrentTeam,
    service: SandboxServiceDep,
    settings: SettingsOfApiDep,
) -> McpAccess | None:
    """Add, replace and remove MCP servers of a running sandbox; its clients are told that the lists changed."""
    options = None if body.mcp_options is None else body.mcp_options.to_options()
    view = await service.change_servers(team.id, sandbox_id, body.mcp, options)
    return McpAccess.of(view, settings)


@router.put("/sandboxes/{sandboxID}/network", status_code=204, responses=describe_errors(400, 404, 409, 500, 503))
async def set_sandbox_network(
    sandbox_id: SandboxId, body: NetworkBody, team: CurrentTeam, service: SandboxServiceDep
) -> Response:
    """Replace what the sandbox may reach, for its open connections too; what is left out is cleared."""
    await service.set_network(team.id, sandbox_id, body)
    return Response(status_code=204)


@router.post(
    "/sandboxes/{sandboxID}/snapshots", status_code=201, responses=describe_errors(400, 404, 409, 500, 503, 507)
)
async def create_snapshot(
    sandbox_id: SandboxId, team: CurrentTeam, service: SandboxServiceDep, body: NewSnapshot | None = None
) -> SnapshotAnswer:
    """Keep the files of a sandbox's workspace as something that sandboxes can be created from."""
    snapshot = await service.snapshot(team.id, sandbox_id, None if body is None else body.name)
    return SnapshotAnswer(snapshot_id=snapshot.snapshot_id, names=list(snapshot.names))


@router.get("/snapshots", responses=describe_errors(400))
async def list_snapshots(
    response: Response,
    team: CurrentTeam,
    service: SandboxServiceDep,
    sandbox_id: Annotated[str | None, Query(alias="sandboxID", description="Only those of this sandbox.")] = None,
    name: Annotated[str | None, Query(description="Only those of this name.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
    next_token: NextToken = None,
) -> list[SnapshotAnswer]:
    """The team's snapshots, newest first. The header `x-next-token` is there if there are more."""
    page = await service.snapshots(
        team.id,
        sandbox_id=None if sandbox_id is None else sandbox_id.partition("-")[0],
        name=name,
        limit=limit,
        cursor=next_token,
    )
    if page.cursor is not None:
        response.headers["X-Next-Token"] = page.cursor
    return [SnapshotAnswer(snapshot_id=one.snapshot_id, names=list(one.names)) for one in page.snapshots]


@router.post(
    "/sandboxes/{sandboxID}/fork",
    status_code=201,
    response_model_exclude_none=True,
    responses=describe_errors(400, 404, 409, 500, 503, 507),
)
async def fork_sandbox(
    sandbox_id: SandboxId,
    team: CurrentTeam,
    service: SandboxServiceDep,
    settings: SettingsOfApiDep,
    body: ForkSandbox | None = None,
) -> list[ForkAnswer]:
    """Make copies with this sandbox's files, environment, metadata and MCP servers; an answer for each."""
    body = body or ForkSandbox()
    timeout_s = DEFAULT_TIMEOUT_S if body.timeout is None else body.timeout
    outcomes = await service.fork(team.id, sandbox_id, count=body.count or 1, timeout_s=timeout_s)
    return [
        ForkAnswer(error=ProblemOfOne(code=outcome.status, message=outcome.message))
        if isinstance(outcome, Problem)
        else ForkAnswer(sandbox=SandboxAnswer.of(outcome, settings))
        for outcome in outcomes
    ]


def _states(state: str | None) -> tuple[Status, ...]:
    if not state:
        return (Status.RUNNING, Status.PAUSED)
    names = state.split(",")
    if unknown := [name for name in names if name not in (Status.RUNNING, Status.PAUSED)]:
        raise InvalidRequest(f"state: {unknown[0]!r} is not one of running and paused.")
    return tuple(Status(name) for name in names)


def _metadata(encoded: str | None) -> dict[str, str]:
    """The SDKs encode each key and value, then the whole; the framework has undone the query's own encoding."""
    pairs = (pair.partition("=") for pair in unquote_plus(encoded).split("&") if pair) if encoded else ()
    return {unquote_plus(key): unquote_plus(value) for key, _, value in pairs}


def _in_utc(moment: datetime | None) -> datetime | None:
    """One without a time zone is in UTC. Raises: InvalidRequest for one before the first year or after the last."""
    if moment is None:
        return None
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise InvalidRequest("startedAfter: the moment is not within the years 1 to 9999 in UTC.") from None
