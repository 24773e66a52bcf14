"""Tries one server: installs its package, starts it in a pod without internet, lists its tools, and notes what it took.

It is started once with all that can be made up and, where that is something else, with no more than must be given: what
it lists then is what a sandbox with such options lists, and can be told to one before it has started a server itself.

The pod is that of a sandbox: the same plan, images, limits and doors. Added is one container that stands in for the
internet and records what the server asks of it, so that no service hears of made-up credentials.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import orjson
import tenacity

from app.catalog import Catalog, OptionError, ServerDefinition
from app.catalog.package import Package
from app.catalog.rehearsals import Rehearsal, rehearsals_of
from app.engines.interface import ContainerSpec, Engine, File, Limits
from app.engines.jobs import Report
from app.errors import EngineError, InvalidRequest
from app.ids_and_time import new_sandbox_id, new_token
from app.packages import PackageInstallError, PackageStore
from app.sandboxes.models import CreateSandbox, McpOptions, PodRecord, ServerStatus
from app.sandboxes.network_rules import NetworkRules
from app.sandboxes.planning import Blueprint, SandboxPlan, make_gateway_config, make_pod_spec, plan_sandbox
from app.sandboxes.pod_clients import AgentClient, GatewayClient, PodUnreachableError
from app.sandboxes.pod_starter import new_pod
from app.sandboxes.server_lists import Lists
from app.templates import GATEWAY_TEMPLATE, built_in_template
from app.verification.processes import memory_mib
from app.verification.results import State, Verification
from app.verification.tool_list import ToolListError, list_tools

_RECORDER_FILE = "/run/sandgate/record_egress.py"
_RECORDER_LIMITS = Limits(memory_mib=128, cpus=0.5, pids=32)
_MCP_PORT = 50005
_UP_S = 60.0
_LIST_S = 30.0
_POLL_S = 0.1
_LOG_LINES = 2000
_MESSAGE_LINES = 6

_ASKS_ITS_SERVICE = re.compile(
    r"\b(401|403)\b|unauthori[sz]ed|forbidden|authenticat|credential|api.?key|invalid.{0,20}(key|token)|token.{0,20}invalid"
    r"|ECONNRE|ENOTFOUND|EAI_AGAIN|fetch failed|connect|getaddrinfo|name or service|timed? ?out|network|unreachable"
    r"|\bSSL\b|socket hang up|remote end closed",
    re.IGNORECASE,
)
"""In the last words of a server that ended: it could not reach, or did not please, the service it is for."""
_IS_MADE_WRONGLY = re.compile(r"\b(ModuleNotFound|Import|Attribute|Syntax|Name|Type)Error\b|ERR_MODULE_NOT_FOUND")
"""There: it does not fit what is installed with it, whatever else it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What came of trying a server."""

    verification: Verification
    rehearsed: tuple[tuple[Rehearsal, Lists | None], ...] = ()
    """What it listed in each rehearsal; None where it listed no tool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """The pod that a server is tried in, and how its gateway is set for each rehearsal."""

    key: str
    rehearsals: tuple[Rehearsal, ...]
    plans: tuple[SandboxPlan, ...]
    pod: PodRecord
    token: str


class Verifier:
    def __init__(
        self,
        *,
        engine: Engine,
        agents: AgentClient,
        gateways: GatewayClient,
        http: httpx.AsyncClient,
        packages: PackageStore,
        catalog: Catalog,
        blueprint: Blueprint,
        recorder: Path,
        up_s: float = _UP_S,
    ) -> None:
        """`recorder` is the program that stands in for the internet. A pod that is not up after `up_s` is an error."""
        self._engine = engine
        self._agents = agents
        self._gateways = gateways
        self._http = http
        self._packages = packages
        self._catalog = catalog
        self._blueprint = blueprint
        self._recorder = recorder
        self._up_s = up_s

    async def verify(self, definition: ServerDefinition, report: Report = lambda line: None) -> Trial:
        """Try a package server. What is wrong with it is in the answer.

        Raises: EngineError for what is wrong with the engine or the pod, ValueError for a server without a package.
        """
        package = definition.package
        if package is None:
            raise ValueError(f"{definition.key} comes in no package")

        def ends(state: State, reason: str) -> Trial:
            return Trial(verification=Verification(state=state, digest=package.digest, message=reason))

        try:
            await self._packages.ensure(definition.key, package, report)
        except PackageInstallError as error:
            return ends("not installed", str(error))
        report("starting")
        try:
            stage = self._plan(definition)
        except (InvalidRequest, OptionError) as error:
            return ends("broken upstream", str(error))
        try:
            return await self._try(package, stage, report)
        finally:
            await self._engine.stop(stage.pod.id)

    def _plan(self, definition: ServerDefinition) -> _Stage:
        rehearsals = rehearsals_of(definition)
        plans = [self._plan_of(definition, rehearsal) for rehearsal in rehearsals]
        return _Stage(
            key=definition.key,
            rehearsals=rehearsals,
            plans=tuple(plans),
            pod=new_pod(sandbox_id=new_sandbox_id(), recipe=None),
            token=new_token(),
        )

    def _plan_of(self, definition: ServerDefinition, rehearsal: Rehearsal) -> SandboxPlan:
        request = CreateSandbox(
            template=GATEWAY_TEMPLATE,
            timeout_s=0,
            network=NetworkRules(allow_internet_access=False),
            mcp={definition.key: rehearsal.options},
        )
        return plan_sandbox(request, built_in_template(GATEWAY_TEMPLATE), self._catalog, self._blueprint)

    async def _try(self, package: Package, stage: _Stage, report: Report) -> Trial:
        async with self._blamed_on_the_pod(stage):
            address = await self._start(stage)
        shown = [await self._rehearse(address, package, plan, stage, report) for plan in stage.plans]
        hosts = _hosts(await self._engine.logs(stage.pod.id, "recorder", tail=_LOG_LINES))
        # One that works with no more than it asks for is no worse for a made-up credential that it does not take.
        best = next((seen for seen, _ in shown if seen.state == "verified"), shown[0][0])
        rehearsed = zip(stage.rehearsals, (lists for _, lists in shown), strict=True)
        return Trial(verification=replace(best, hosts=hosts), rehearsed=tuple(rehearsed))

    async def _rehearse(
        self, address: str, package: Package, plan: SandboxPlan, stage: _Stage, report: Report
    ) -> tuple[Verification, Lists | None]:
        began = asyncio.get_running_loop().time()
        async with self._blamed_on_the_pod(stage):
            await self._set(address, plan, stage)
        try:
            async with asyncio.timeout(plan.deadline_s + _LIST_S):
                status = await self._settled(address, stage)
                start_s = round(asyncio.get_running_loop().time() - began, 2)
                report("listing tools")
                lists, tools = await self._list(address, status, stage)
        except (TimeoutError, PodUnreachableError, ToolListError, httpx.HTTPError) as error:
            reason = str(error) or "was not up in time"
            return Verification(state="broken upstream", digest=package.digest, message=reason), None
        memory = await asyncio.to_thread(memory_mib, package.directory)
        verification = Verification(
            state=_state_of(status, tools),
            digest=package.digest,
            tools=tools,
            start_s=start_s if status.state == "ready" else None,
            memory_mib=round(memory, 1) if memory is not None else None,
            message=None if tools else _message(status),
        )
        return verification, lists

    @asynccontextmanager
    async def _blamed_on_the_pod(self, stage: _Stage) -> AsyncIterator[None]:
        """Before the server has begun, nothing is its fault: what a busy machine makes of it must not be its result."""
        try:
            async with asyncio.timeout(self._up_s):
                yield
        except (TimeoutError, PodUnreachableError) as error:
            reason = str(error) or f"It was not up within {self._up_s:g} s."
            raise EngineError(
                f"MCP server {stage.key!r} is still to be tried: its pod cannot be used. {reason}"
            ) from error

    async def _set(self, address: str, plan: SandboxPlan, stage: _Stage) -> None:
        """Let the gateway start the server as `plan` says, instead of what it has."""
        assert plan.gateway is not None
        config = make_gateway_config(plan.gateway, McpOptions(), stage.pod, [stage.token])
        await self._gateways.configure(address, stage.pod.secrets.gateway_token, config)

    async def _settled(self, address: str, stage: _Stage) -> ServerStatus:
        """The server's state once it is up, or has failed."""
        (status,) = await self._gateways.status(address, stage.pod.secrets.gateway_token, wait_s=120)
        return status

    async def _list(self, address: str, status: ServerStatus, stage: _Stage) -> tuple[Lists | None, int]:
        """What a server that is ready listed itself, and how many tools a client sees."""
        if status.state != "ready":
            return None, 0
        url = f"http://{address}:{_MCP_PORT}/mcp"
        tools = await list_tools(self._http, url, stage.token, timeout_s=_LIST_S)
        if not tools:
            return None, 0
        # Without its service one may fail to list its resources; its tools are worth knowing all the same.
        lists = await self._gateways.lists(address, stage.pod.secrets.gateway_token, status.name, partial=True)
        return lists, len(tools)

    async def _start(self, stage: _Stage) -> str:
        """The pod's address, once everything in it listens."""
        spec = make_pod_spec(stage.plans[0], stage.pod)
        recorder = ContainerSpec(
            role="recorder",
            image=self._blueprint.gateway_image,
            limits=_RECORDER_LIMITS,
            entrypoint_prefix=("python3", "-Iu", _RECORDER_FILE),
            files=(File(path=_RECORDER_FILE, content=self._recorder.read_bytes()),),
            capabilities=("NET_BIND_SERVICE",),
        )
        started = await self._engine.start(replace(spec, containers=(*spec.containers, recorder)))
        if started.address is None:
            raise EngineError(f"Pod {stage.pod.id} was started and has no address.")
        listening = tenacity.AsyncRetrying(
            wait=tenacity.wait_fixed(_POLL_S), retry=tenacity.retry_if_result(lambda log: "ready" not in log)
        )
        await listening(self._engine.logs, stage.pod.id, "recorder", tail=_LOG_LINES)
        body = {
            "sandboxId": stage.pod.sandbox_id,
            "accessToken": stage.token,
            "stdioToken": stage.pod.secrets.stdio_token,
        }
        await self._agents.init(started.address, stage.pod.secrets.agent_token, body)
        return started.address


def _hosts(log: str) -> tuple[str, ...]:
    """`host:port` of connections, and `host` of names that were looked up and not connected to."""
    seen: dict[str, set[int]] = {}
    for line in log.splitlines():
        if line.startswith("{"):
            record = orjson.loads(line)
            ports = seen.setdefault(record["host"], set())
            if record["port"] is not None:
                ports.add(record["port"])
    return tuple(text for host in sorted(seen) for text in _written(host, seen[host]))


def _written(host: str, ports: Iterable[int]) -> list[str]:
    return [f"{host}:{port}" for port in sorted(ports)] or [host]


def _state_of(status: ServerStatus, tools: int) -> State:
    if status.state == "ready":
        return "verified" if tools else "needs real credentials"
    said = "\n".join([status.message or "", *status.stderr])
    asks = _ASKS_ITS_SERVICE.search(said) and not _IS_MADE_WRONGLY.search(said)
    return "needs real credentials" if asks else "broken upstream"


def _message(status: ServerStatus) -> str:
    if status.state == "ready":
        return "lists no tools"
    return "\n".join([status.message or status.state, *status.stderr[-_MESSAGE_LINES:]])
