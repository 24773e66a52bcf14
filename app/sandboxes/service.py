"""What callers can do with sandboxes: decides and records, leaves the doing to `transitions`."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import orjson

from app.catalog import Catalog
from app.errors import Conflict, GuestUnresponsive, InvalidRequest, Problem
from app.ids_and_time import new_sandbox_id, new_token
from app.sandboxes.directory import Directory
from app.sandboxes.expiry import Expiry
from app.sandboxes.failures import find_live, sandbox_not_found
from app.sandboxes.listing import Listing, Page, list_page
from app.sandboxes.models import (
    CreateSandbox,
    McpOptions,
    PauseMode,
    PodRecord,
    Sandbox,
    SandboxSecrets,
    ServerStatus,
    Status,
)
from app.sandboxes.planning import Blueprint, SandboxPlan, plan_sandbox
from app.sandboxes.pod_clients import GatewayClient, PodUnreachableError
from app.sandboxes.pod_starter import new_pod
from app.sandboxes.store import Store
from app.sandboxes.transitions import Transitions
from app.sandboxes.warm_pool import PoolStatus, WarmPool
from app.templates import ResolvedTemplate, Snapshot, SnapshotPage, TemplateService

MOST_FORKS = 20
_FORKS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class SandboxView:
    """A sandbox and how its MCP servers are doing now."""

    sandbox: Sandbox
    servers: tuple[ServerStatus, ...]


@dataclass(frozen=True, slots=True)
class _Recorded:
    sandbox: Sandbox
    pod: PodRecord
    plan: SandboxPlan


class SandboxService:
    def __init__(
        self,
        *,
        store: Store,
        transitions: Transitions,
        expiry: Expiry,
        warm_pool: WarmPool,
        directory: Directory,
        gateways: GatewayClient,
        templates: TemplateService,
        catalog: Catalog,
        blueprint: Blueprint,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._transitions = transitions
        self._expiry = expiry
        self._warm_pool = warm_pool
        self._directory = directory
        self._gateways = gateways
        self._templates = templates
        self._catalog = catalog
        self._blueprint = blueprint
        self._now = now

    def pools(self) -> list[PoolStatus]:
        """How the pods that wait are doing."""
        return self._warm_pool.status()

    # -- create, look, list -----------------------------------------------------------------------------------------

    async def create(self, team_id: str, request: CreateSandbox, *, idempotency_key: str | None = None) -> SandboxView:
        """Plan, record and start a sandbox. The same key with the same request gives the same sandbox again.

        Raises: what `TemplateService.resolve`, `plan_sandbox` and `Transitions.bring_up` raise; Conflict for a key that
        was used for something else.
        """
        digest = None if idempotency_key is None else _digest(request)
        if earlier := await self._made_by(team_id, idempotency_key, digest):
            return earlier
        template = await self._templates.resolve(team_id, request.template)
        if template.kind != "built-in":
            # Before there is a row: between that and its start nothing may fail.
            await self._templates.count_spawn(template.template_id)
        try:
            recorded = await self._record(
                team_id, request, template, idempotency_key=idempotency_key, request_digest=digest
            )
        except Conflict:
            # Two creates with one key at the same moment: the other one was first.
            if earlier := await self._made_by(team_id, idempotency_key, digest):
                return earlier
            raise
        return await self._bring_up(recorded)

    async def get(self, team_id: str, sandbox_id: str) -> SandboxView:
        """Raises: NotFound, also for another team's sandbox."""
        sandbox = await self._find(team_id, sandbox_id)
        return SandboxView(sandbox, await self._servers(sandbox))

    async def page(self, team_id: str, listing: Listing) -> Page:
        """Raises: InvalidRequest (cursor)."""
        return await list_page(self._store, team_id, listing)

    # -- time -------------------------------------------------------------------------------------------------------

    async def connect(
        self, team_id: str, sandbox_id: str, timeout_s: int, *, reboot: bool = False
    ) -> tuple[SandboxView, bool]:
        """Make sure that the sandbox runs and lives `timeout_s` from now; never shortens. True if it was resumed.

        With `reboot` a paused one keeps its files only. Raises: NotFound, and what `Transitions.resume` raises.
        """
        ends_at = self._now() + timedelta(seconds=timeout_s)
        sandbox = await self._find(team_id, sandbox_id)
        running = await self._extend(sandbox, ends_at, timeout_s)
        was_resumed = running is None
        if running is None:
            resumed = (await self._transitions.resume(sandbox_id, timeout_s=timeout_s, reboot=reboot)).live.sandbox
            # Somebody else may have resumed it, for less time.
            running = await self._extend(resumed, ends_at, timeout_s) or resumed
        return SandboxView(running, await self._servers(running)), was_resumed

    async def resume(self, team_id: str, sandbox_id: str, timeout_s: int) -> SandboxView:
        """As older SDKs resume. Raises: Conflict if the sandbox is not paused."""
        sandbox = await self._find(team_id, sandbox_id)
        if sandbox.target is not Status.PAUSED and sandbox.status is not Status.PAUSED:
            raise Conflict(f"Sandbox {sandbox_id} is already running.")
        view, _ = await self.connect(team_id, sandbox_id, timeout_s)
        return view

    async def resume_for_traffic(self, sandbox_id: str) -> None:
        """Wake a paused sandbox because somebody talks to it; it then lives as long as it was last given.

        Raises: NotFound, EngineAway, SandboxFailed.
        """
        live = find_live(sandbox_id, self._directory)
        if not live.may_resume:
            raise sandbox_not_found(sandbox_id)
        # Its row is asked, because the directory does not follow every change of a time-out.
        sandbox = await self._find(live.sandbox.team_id, sandbox_id)
        await self._transitions.resume(sandbox_id, timeout_s=sandbox.timeout_s)

    async def refresh(self, team_id: str, sandbox_id: str, duration_s: int) -> None:
        """Let a running sandbox live at least `duration_s` from now; a paused one that long once traffic wakes it."""
        ends_at = self._now() + timedelta(seconds=duration_s)
        while await self._extend(await self._find(team_id, sandbox_id), ends_at, duration_s) is None:
            if await self._store.extend_paused(sandbox_id, timeout_s=duration_s):
                return  # and else it was resumed since it was looked up

    async def set_timeout(self, team_id: str, sandbox_id: str, timeout_s: int) -> None:
        """The sandbox ends `timeout_s` from now, sooner or later than before; at once if not positive."""
        await self._find(team_id, sandbox_id)
        await self._set_timeout(sandbox_id, timeout_s)
        self._expiry.moved()

    async def _extend(self, sandbox: Sandbox, ends_at: datetime, timeout_s: int) -> Sandbox | None:
        """The sandbox, with that much time or more; None if it is paused or on its way there. Raises: NotFound."""
        while sandbox.target is not Status.PAUSED and sandbox.status is not Status.PAUSED:
            if ends_at <= sandbox.ends_at:
                return sandbox
            if await self._store.extend(sandbox.id, ends_at=ends_at, timeout_s=timeout_s):
                return replace(sandbox, ends_at=ends_at, timeout_s=timeout_s)
            # It was paused, ended or given more time since it was looked up.
            sandbox = await self._find(sandbox.team_id, sandbox.id)
        return None

    async def _set_timeout(self, sandbox_id: str, timeout_s: int) -> None:
        ends_at = self._now() + timedelta(seconds=timeout_s)
        if not await self._store.set_timeout(sandbox_id, ends_at=ends_at, timeout_s=max(timeout_s, 0)):
            raise sandbox_not_found(sandbox_id)  # its time was over just then

    # -- pause, end -------------------------------------------------------------------------------------------------

    async def pause(self, team_id: str, sandbox_id: str, mode: PauseMode, *, only_healthy: bool = False) -> None:
        """With `only_healthy` nothing is paused if its agent does not answer.

        Raises: NotFound, Conflict if it is paused already, GuestUnresponsive, and what `Transitions.pause` raises.
        """
        sandbox = await self._find(team_id, sandbox_id)
        if sandbox.target is Status.PAUSED:
            raise Conflict(f"Sandbox {sandbox_id} is already paused.")
        if only_healthy and not await self._transitions.answers(sandbox_id):
            raise GuestUnresponsive(
                f"The agent of sandbox {sandbox_id} does not answer, so the sandbox was left running."
                " Pause it without requireHealthyGuest, or kill it."
            )
        await self._transitions.pause(sandbox_id, mode)

    async def kill(self, team_id: str, sandbox_id: str) -> None:
        """From the answer on, nothing reaches the sandbox; its containers go in the background. Raises: NotFound."""
        if not await self._store.ask_to_stop(sandbox_id, team_id=team_id):
            raise sandbox_not_found(sandbox_id)
        self._transitions.stop_soon(sandbox_id)

    # -- MCP servers ------------------------------------------------------------------------------------------------

    async def change_servers(
        self,
        team_id: str,
        sandbox_id: str,
        changes: Mapping[str, Mapping[str, Any] | None],
        options: McpOptions | None,
    ) -> SandboxView:
        """Add, replace and, where the value is None, remove MCP servers of a running sandbox.

        Raises: NotFound, Conflict (no gateway, or paused), and what `Transitions.change_servers` raises.
        """
        sandbox = await self._find(team_id, sandbox_id)
        if not sandbox.has_gateway:
            raise Conflict(f"Sandbox {sandbox_id} has no gateway: create it with mcp, which may be empty.")
        changed = await self._transitions.change_servers(sandbox_id, changes, options)
        return SandboxView(changed.live.sandbox, changed.servers)

    # -- network ----------------------------------------------------------------------------------------------------

    async def set_network(self, team_id: str, sandbox_id: str, network: Mapping[str, Any]) -> None:
        """Replace what the sandbox may reach, at once. Raises: NotFound, InvalidRequest, Conflict."""
        sandbox = await self._find(team_id, sandbox_id)
        rules = sandbox.network.updated(network)
        if not sandbox.has_egress and (rules.allow_internet_access or rules.allow_out):
            raise Conflict(
                f"Sandbox {sandbox_id} was created without internet access, which cannot be given later:"
                " create it with network.denyOut ['0.0.0.0/0'] to open it by rules."
            )
        await self._transitions.set_network(sandbox_id, rules)

    # -- snapshots and forks ----------------------------------------------------------------------------------------

    async def snapshot(self, team_id: str, sandbox_id: str, name: str | None) -> Snapshot:
        """Keep the workspace's files as something that sandboxes can be made from. Raises: NotFound, InvalidRequest."""
        sandbox = await self._find(team_id, sandbox_id)
        image = await self._templates.plan_snapshot(team_id, name)
        await self._transitions.snapshot(sandbox_id, image)
        return await self._templates.add_snapshot(
            team_id, sandbox_id=sandbox_id, image=image, name=name, base=sandbox.template
        )

    async def snapshots(
        self, team_id: str, *, sandbox_id: str | None, name: str | None, limit: int, cursor: str | None
    ) -> SnapshotPage:
        return await self._templates.list_snapshots(
            team_id, sandbox_id=sandbox_id, name=name, limit=limit, cursor=cursor
        )

    async def fork(self, team_id: str, sandbox_id: str, *, count: int, timeout_s: int) -> list[SandboxView | Problem]:
        """Make `count` sandboxes with this one's files, environment, metadata and MCP servers; an outcome for each.

        Raises: NotFound, InvalidRequest, and what `Transitions.snapshot` raises.
        """
        if not 1 <= count <= MOST_FORKS:
            raise InvalidRequest(f"count must be 1 to {MOST_FORKS}.")
        source = await self._find(team_id, sandbox_id)
        image = self._templates.image_of_fork()
        request = CreateSandbox(
            template=source.template.name,
            timeout_s=timeout_s,
            metadata=source.metadata,
            envs=source.secrets.envs,
            network=source.network,
            mcp=source.secrets.mcp if source.has_gateway else None,
            mcp_options=source.secrets.mcp_options,
            lifecycle=source.lifecycle,
            mounts=source.mounts,
        )
        template = replace(source.template, image=image)
        # Recorded before the image is made, so that it goes with them whatever happens.
        copies: list[_Recorded] = []
        try:
            for _ in range(count):
                copy = await self._record(team_id, request, template, fork_image=image)
                copies.append(copy)
            await self._transitions.snapshot(sandbox_id, image)
        except Exception as error:
            failure = error.message if isinstance(error, Problem) else "The fork failed for an internal reason."
            try:
                for copy in copies:
                    await self._store.ask_to_stop(copy.sandbox.id, failure=failure)
            finally:
                for copy in copies:
                    self._transitions.stop_soon(copy.sandbox.id)  # also where the database is away, until it is back
            raise
        at_once = asyncio.Semaphore(_FORKS_AT_ONCE)

        async def start(copy: _Recorded) -> SandboxView | Problem:
            async with at_once:
                try:
                    return await self._bring_up(copy)
                except Problem as problem:
                    return problem

        async with asyncio.TaskGroup() as group:
            starts = [group.create_task(start(copy)) for copy in copies]
        return [task.result() for task in starts]

    # -- steps ------------------------------------------------------------------------------------------------------

    async def _record(
        self, team_id: str, request: CreateSandbox, template: ResolvedTemplate, **columns: Any
    ) -> _Recorded:
        plan = plan_sandbox(request, template, self._catalog, self._blueprint)
        now = self._now()
        limits = plan.workspace.limits
        sandbox = Sandbox(
            id=new_sandbox_id(),
            team_id=team_id,
            template=template,
            status=Status.STARTING,
            target=Status.RUNNING,
            created_at=now,
            started_at=now,
            ends_at=now + timedelta(seconds=request.timeout_s),
            timeout_s=request.timeout_s,
            lifecycle=request.lifecycle,
            pause_mode=None,
            metadata=request.metadata,
            network=request.network,
            has_egress=plan.egress,
            mounts=request.mounts,
            has_gateway=plan.gateway is not None,
            cpus=math.ceil(limits.cpus),
            memory_mib=limits.memory_mib,
            secrets=SandboxSecrets(
                access_token=new_token(),
                envs=request.envs,
                mcp=request.mcp or {},
                mcp_options=request.mcp_options,
                gateway=plan.gateway,
                mcp_token=new_token() if plan.gateway is not None else None,
                traffic_token=None if request.network.allow_public_traffic else new_token(),
            ),
        )
        pod = await self._store.insert(sandbox, new_pod(sandbox_id=sandbox.id, recipe=plan.recipe), **columns)
        return _Recorded(sandbox, pod, plan)

    async def _bring_up(self, recorded: _Recorded) -> SandboxView:
        self._warm_pool.asked(recorded.plan.recipe, recorded.pod)
        brought_up = await self._transitions.bring_up(recorded.sandbox, recorded.pod, recorded.plan)
        return SandboxView(brought_up.live.sandbox, brought_up.servers)

    async def _made_by(self, team_id: str, idempotency_key: str | None, digest: str | None) -> SandboxView | None:
        """The sandbox that an earlier create with this key made, once that create is over. Raises: Conflict."""
        if idempotency_key is None:
            return None
        found = await self._store.find_by_key(team_id, idempotency_key)
        if found is None:
            return None
        if found.request_digest != digest:
            raise Conflict(f"The idempotency key {idempotency_key!r} was used for a different request: take a new one.")
        await self._transitions.until_settled(found.sandbox_id)
        sandbox = await self._store.find(found.sandbox_id, team_id=team_id)
        if sandbox is not None:
            return SandboxView(sandbox, await self._servers(sandbox))
        if await self._store.find_by_key(team_id, idempotency_key) is None:
            return None  # that create failed, so this one is the first
        raise Conflict(
            f"Sandbox {found.sandbox_id}, made with the idempotency key {idempotency_key!r}, has ended: take a new key."
        )

    async def _find(self, team_id: str, sandbox_id: str) -> Sandbox:
        sandbox = await self._store.find(sandbox_id, team_id=team_id)
        if sandbox is None:
            raise sandbox_not_found(sandbox_id)
        return sandbox

    async def _servers(self, sandbox: Sandbox) -> tuple[ServerStatus, ...]:
        live = self._directory.find(sandbox.id)
        if live is None:
            return self._transitions.servers_aside(sandbox)
        if not live.sandbox.has_gateway:
            return ()
        keys = live.sandbox.secrets.mcp
        if live.address is None:
            return tuple(ServerStatus(name=key, state="paused") for key in keys)
        try:
            servers = await self._gateways.status(live.address, live.pod.secrets.gateway_token)
            return (*servers, *self._transitions.servers_aside(live.sandbox))
        except PodUnreachableError as error:
            return tuple(ServerStatus(name=key, state="failed", message=f"cannot be asked: {error}") for key in keys)


def _digest(request: CreateSandbox) -> str:
    """The same for requests that wish the same."""
    return hashlib.sha256(orjson.dumps(request, option=orjson.OPT_SORT_KEYS)).hexdigest()
