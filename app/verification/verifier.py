"""Tries one server: installs its package, starts it in a pod without internet, lists its tools, and notes what it took.

The pod is that of a sandbox: the same plan, images, limits and doors. Added is one container that stands in for the
internet and records what the server asks of it, so that no service hears of made-up credentials.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import orjson
import tenacity

from app.catalog import Catalog, OptionError, ServerDefinition
from app.catalog.package import Package
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
from app.templates import GATEWAY_TEMPLATE, built_in_template
from app.verification.processes import memory_mib
from app.verification.results import State, Verification
from app.verification.stand_ins import stand_in_options
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
class _Trial:
    plan: SandboxPlan
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
    ) -> None:
        """`recorder` is the program that stands in for the internet."""
        self._engine = engine
        self._agents = agents
        self._gateways = gateways
        self._http = http
        self._packages = packages
        self._catalog = catalog
        self._blueprint = blueprint
        self._recorder = recorder

    async def verify(self, definition: ServerDefinition, report: Report = lambda line: None) -> Verification:
        """Try a package server. What is wrong with it is in the answer.

        Raises: EngineError for what is wrong with the engine, ValueError for a server that comes in no package.
        """
        package = definition.package
        if package is None:
            raise ValueError(f"{definition.key} comes in no package")
        try:
            await self._packages.ensure(definition.key, package, report)
        except PackageInstallError as error:
            return Verification(state="not installed", digest=package.digest, message=str(error))
        report("starting")
        try:
            trial = self._plan(definition)
        except (InvalidRequest, OptionError) as error:
            return Verification(state="broken", digest=package.digest, message=str(error))
        try:
            async with asyncio.timeout(_UP_S + trial.plan.deadline_s + _LIST_S):
                return await self._try(package, trial, report)
        except (TimeoutError, PodUnreachableError, ToolListError, httpx.HTTPError) as error:
            reason = str(error) or "was not up in time"
            return Verification(state="broken", digest=package.digest, message=reason)
        finally:
            await self._engine.stop(trial.pod.id)

    def _plan(self, definition: ServerDefinition) -> _Trial:
        request = CreateSandbox(
            template=GATEWAY_TEMPLATE,
            timeout_s=0,
            network=NetworkRules(allow_internet_access=False),
            mcp={definition.key: stand_in_options(definition)},
        )
        plan = plan_sandbox(request, built_in_template(GATEWAY_TEMPLATE), self._catalog, self._blueprint)
        return _Trial(plan=plan, pod=new_pod(sandbox_id=new_sandbox_id(), recipe=None), token=new_token())

    async def _try(self, package: Package, trial: _Trial, report: Report) -> Verification:
        loop = asyncio.get_running_loop()
        address = await self._start(trial)
        secrets = trial.pod.secrets
        assert trial.plan.gateway is not None
        config = make_gateway_config(trial.plan.gateway, McpOptions(), trial.pod, [trial.token])
        began = loop.time()
        await self._gateways.configure(address, secrets.gateway_token, config)
        (status,) = await self._gateways.status(address, secrets.gateway_token, wait_s=120)
        start_s = round(loop.time() - began, 2)
        tools: list[str] = []
        if status.state == "ready":
            report("listing tools")
            tools = await list_tools(self._http, f"http://{address}:{_MCP_PORT}/mcp", trial.token, timeout_s=_LIST_S)
        memory = await asyncio.to_thread(memory_mib, package.directory)
        hosts = _hosts(await self._engine.logs(trial.pod.id, "recorder", tail=_LOG_LINES))
        return Verification(
            state=_state_of(status, tools),
            digest=package.digest,
            tools=len(tools),
            start_s=start_s if status.state == "ready" else None,
            memory_mib=round(memory, 1) if memory is not None else None,
            hosts=hosts,
            message=None if tools else _message(status),
        )

    async def _start(self, trial: _Trial) -> str:
        """The pod's address, once everything in it listens."""
        spec = make_pod_spec(trial.plan, trial.pod)
        recorder = ContainerSpec(
            role="recorder",
            image=self._blueprint.gateway_image,
            limits=_RECORDER_LIMITS,
            entrypoint_prefix=("python3", "-Iu", _RECORDER_FILE),
            files=(File(path=_RECORDER_FILE, content=self._recorder.read_bytes()),),
            capabilities=("NET_BIND_SERVICE",),
        )
        async with asyncio.timeout(_UP_S):
            started = await self._engine.start(replace(spec, containers=(*spec.containers, recorder)))
            if started.address is None:
                raise EngineError(f"Pod {trial.pod.id} was started and has no address.")
            listening = tenacity.AsyncRetrying(
                wait=tenacity.wait_fixed(_POLL_S), retry=tenacity.retry_if_result(lambda log: "ready" not in log)
            )
            await listening(self._engine.logs, trial.pod.id, "recorder", tail=_LOG_LINES)
            body = {
                "sandboxId": trial.pod.sandbox_id,
                "accessToken": trial.token,
                "stdioToken": trial.pod.secrets.stdio_token,
            }
            await self._agents.init(started.address, trial.pod.secrets.agent_token, body)
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


def _state_of(status: ServerStatus, tools: list[str]) -> State:
    if status.state == "ready":
        return "verified" if tools else "needs its service"
    said = "\n".join([status.message or "", *status.stderr])
    asks = _ASKS_ITS_SERVICE.search(said) and not _IS_MADE_WRONGLY.search(said)
    return "needs its service" if asks else "broken"


def _message(status: ServerStatus) -> str:
    if status.state == "ready":
        return "lists no tools"
    return "\n".join([status.message or status.state, *status.stderr[-_MESSAGE_LINES:]])
