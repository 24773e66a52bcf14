"""What callers can do with sandboxes: decides and records, leaves the doing to the reconciler."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from app.catalog import Catalog
from app.errors import NotFound
from app.ids_and_time import new_pod_id, new_sandbox_id, new_token
from app.sandboxes.directory import Directory
from app.sandboxes.models import (
    CreateSandbox,
    PodRecord,
    PodSecrets,
    Sandbox,
    SandboxSecrets,
    ServerStatus,
    Status,
)
from app.sandboxes.planning import Blueprint, plan_sandbox
from app.sandboxes.pod_clients import GatewayClient, PodUnreachableError
from app.sandboxes.reconciler import Reconciler
from app.sandboxes.store import Store


@dataclass(frozen=True, slots=True)
class SandboxView:
    """A sandbox and how its MCP servers are doing now."""

    sandbox: Sandbox
    servers: tuple[ServerStatus, ...]


class SandboxService:
    def __init__(
        self,
        *,
        store: Store,
        reconciler: Reconciler,
        directory: Directory,
        gateways: GatewayClient,
        catalog: Catalog,
        blueprint: Blueprint,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._reconciler = reconciler
        self._directory = directory
        self._gateways = gateways
        self._catalog = catalog
        self._blueprint = blueprint
        self._now = now

    async def create(self, team_id: str, request: CreateSandbox) -> SandboxView:
        """Plan, record and start a sandbox. Raises what `plan_sandbox` and `Reconciler.bring_up` raise."""
        plan = plan_sandbox(request, self._catalog, self._blueprint)
        now = self._now()
        lifetime = timedelta(seconds=request.timeout_s)
        limits = self._blueprint.workspace_limits
        sandbox = Sandbox(
            id=new_sandbox_id(),
            team_id=team_id,
            template=request.template,
            status=Status.STARTING,
            target=Status.RUNNING,
            created_at=now,
            started_at=now,
            ends_at=now + lifetime,
            metadata=request.metadata,
            egress=request.allow_internet_access,
            has_gateway=plan.gateway is not None,
            cpus=math.ceil(limits.cpus),
            memory_mib=limits.memory_mib,
            secrets=SandboxSecrets(
                access_token=new_token(),
                envs=request.envs,
                mcp=request.mcp or {},
                mcp_options=request.mcp_options,
                mcp_token=new_token() if plan.gateway is not None else None,
            ),
        )
        pod_secrets = PodSecrets(agent_token=new_token(), gateway_token=new_token(), stdio_token=new_token())
        pod = PodRecord(id=new_pod_id(), sandbox_id=sandbox.id, secrets=pod_secrets)
        await self._store.insert(sandbox, pod)
        brought_up = await self._reconciler.bring_up(sandbox, pod, plan, lifetime=lifetime)
        return SandboxView(brought_up.live.sandbox, brought_up.servers)

    async def get(self, team_id: str, sandbox_id: str) -> SandboxView:
        """Raises: NotFound, also for another team's sandbox."""
        sandbox = await self._find(team_id, sandbox_id)
        return SandboxView(sandbox, await self._servers(sandbox_id))

    async def list(self, team_id: str) -> list[Sandbox]:
        """The team's running sandboxes, newest first."""
        return await self._store.running(team_id=team_id)

    async def connect(self, team_id: str, sandbox_id: str, timeout_s: int) -> SandboxView:
        """Make sure the sandbox lives `timeout_s` from now; never shortens. Raises: NotFound."""
        sandbox = await self._find(team_id, sandbox_id)
        ends_at = self._now() + timedelta(seconds=timeout_s)
        if ends_at > sandbox.ends_at:
            await self._store.set_ends_at(sandbox_id, ends_at)
            sandbox = replace(sandbox, ends_at=ends_at)
        return SandboxView(sandbox, await self._servers(sandbox_id))

    async def set_timeout(self, team_id: str, sandbox_id: str, timeout_s: int) -> None:
        """The sandbox ends `timeout_s` from now, sooner or later than before; at once if not positive."""
        await self._find(team_id, sandbox_id)
        await self._store.set_ends_at(sandbox_id, self._now() + timedelta(seconds=timeout_s))
        self._reconciler.expiry_moved()

    async def kill(self, team_id: str, sandbox_id: str) -> None:
        """From the answer on, nothing reaches the sandbox; its containers go in the background. Raises: NotFound."""
        if not await self._store.ask_to_stop(sandbox_id, team_id=team_id):
            raise _not_found(sandbox_id)
        self._reconciler.stop_soon(sandbox_id)

    async def _find(self, team_id: str, sandbox_id: str) -> Sandbox:
        sandbox = await self._store.find(sandbox_id, team_id=team_id)
        if sandbox is None:
            raise _not_found(sandbox_id)
        return sandbox

    async def _servers(self, sandbox_id: str) -> tuple[ServerStatus, ...]:
        live = self._directory.find(sandbox_id)
        if live is None or not live.sandbox.has_gateway:
            return ()
        try:
            return tuple(await self._gateways.status(live.address, live.pod.secrets.gateway_token))
        except PodUnreachableError as error:
            return tuple(
                ServerStatus(name=key, state="failed", message=f"cannot be asked: {error}")
                for key in live.sandbox.secrets.mcp
            )


def _not_found(sandbox_id: str) -> NotFound:
    return NotFound(f"Sandbox {sandbox_id} was not found. It never was, was killed, or has reached its end of life.")
