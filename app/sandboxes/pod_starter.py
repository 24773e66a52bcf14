"""Makes a pod into a sandbox: starts its containers unless it waits warm, then configures what runs in them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import structlog
import tenacity

from app.concurrency import all_of
from app.engines.interface import EgressRules, Engine
from app.errors import EngineError, EngineUnavailable, SandboxFailed
from app.ids_and_time import new_pod_id, new_token
from app.sandboxes.gateway_setup import GatewaySetup
from app.sandboxes.models import PodRecord, PodSecrets, Sandbox, ServerStatus
from app.sandboxes.planning import SandboxPlan, make_pod_spec
from app.sandboxes.pod_clients import AgentClient, GatewayClient, PodUnreachableError
from app.sandboxes.store import Store
from app.sandboxes.turns import Turns

_PREPARE_WAIT_S = 20.0
_COLD_STARTS_AT_ONCE = 8
"""An engine makes few containers at a time; more at once make all of them slower, until none is up in time."""
_TURN_WITHIN_S = 40.0
"""The SDKs wait 60 s for an answer."""
_WARM_ANSWER_S = 3.0
_READY_POLL_S = 2.0
_READY_DEADLINE_S = 60.0
_LOG_TAIL = 20

_log = structlog.get_logger()


def new_pod(*, sandbox_id: str | None, recipe: str | None) -> PodRecord:
    secrets = PodSecrets(agent_token=new_token(), gateway_token=new_token(), stdio_token=new_token())
    return PodRecord(id=new_pod_id(), sandbox_id=sandbox_id, secrets=secrets, recipe=recipe)


@dataclass(frozen=True, slots=True)
class Started:
    sandbox: Sandbox
    """With the servers that it has now."""
    pod: PodRecord
    """The one it has now, with its address."""
    servers: tuple[ServerStatus, ...]


class PodStarter:
    def __init__(
        self,
        *,
        store: Store,
        engine: Engine,
        agents: AgentClient,
        gateways: GatewayClient,
        setup: GatewaySetup,
        now: Callable[[], datetime],
        listen_deadline_s: float,
    ) -> None:
        self._store = store
        self._engine = engine
        self._agents = agents
        self._gateways = gateways
        self._setup = setup
        self._now = now
        self._listen_deadline_s = listen_deadline_s
        self._prepared = asyncio.Event()
        self._cold_starts = Turns(at_once=_COLD_STARTS_AT_ONCE, within_s=_TURN_WITHIN_S)

    def engine_prepared(self) -> None:
        """The engine's networks and their guard are in place: pods may be started."""
        self._prepared.set()

    def engine_unprepared(self) -> None:
        """They cannot be set any more, so no pod may be started."""
        self._prepared.clear()

    @property
    def is_prepared(self) -> bool:
        return self._prepared.is_set()

    async def start_sandbox(self, sandbox: Sandbox, pod: PodRecord, plan: SandboxPlan) -> Started:
        """Bring up the pod of a recorded sandbox.

        Raises: EngineError, TooBusy, ServerStartFailed, SandboxFailed (with the last log lines of what did not come
        up).
        """
        if plan.gateway is not None and plan.gateway.fetched_keys:
            await self.until_prepared()
            sandbox = await self._setup.prepare(sandbox)
        if pod.address is not None:
            try:
                async with asyncio.timeout(_WARM_ANSWER_S):
                    if plan.egress_rules != EgressRules():
                        await self._engine.set_network(pod.id, plan.egress_rules)
                    known = await self._configure(sandbox, pod, pod.address)
            except (TimeoutError, PodUnreachableError, EngineError) as error:
                _log.warning("warm_pod_unusable", pod_id=pod.id, sandbox_id=sandbox.id, reason=str(error))
                cold = new_pod(sandbox_id=sandbox.id, recipe=plan.recipe)
                await self._store.replace_pod(pod, cold, self._now())
                pod = cold
            else:
                sandbox, servers = await self._finish(sandbox, pod, known)
                return Started(sandbox, pod, servers)
        async with self._cold_starts.turn():
            pod = await self.start_pod(pod, plan)
        sandbox, servers = await self.configure(sandbox, pod)
        return Started(sandbox, pod, servers)

    async def start_pod(self, pod: PodRecord, plan: SandboxPlan) -> PodRecord:
        """Start the containers of a recorded pod. Raises: EngineError."""
        await self.until_prepared()
        started = await self._engine.start(make_pod_spec(plan, pod))
        if started.address is None:
            raise EngineError(f"Pod {pod.id} was started and has no address.")
        return replace(pod, address=started.address)

    async def until_listening(self, pod: PodRecord, plan: SandboxPlan) -> None:
        """Wait until the pod's agent and gateway can be configured. Raises: SandboxFailed."""
        try:
            async with asyncio.timeout(self._listen_deadline_s):
                await self._agents.until_listening(_address_of(pod))
                if plan.gateway is not None:
                    await self._gateways.until_listening(_address_of(pod))
        except (TimeoutError, PodUnreachableError) as error:
            raise await self._did_not_come_up(pod, error) from error

    async def is_listening(self, pod: PodRecord, plan: SandboxPlan) -> bool:
        """Whether the pod's agent, and its gateway if it has one, answer now; within 5 s each."""
        address = _address_of(pod)
        return await self._agents.is_healthy(address) and (
            plan.gateway is None or await self._gateways.is_listening(address)
        )

    async def configure(self, sandbox: Sandbox, pod: PodRecord) -> tuple[Sandbox, tuple[ServerStatus, ...]]:
        """Tell agent and gateway whom they serve, add image servers, and run the template's start command.

        Gives the sandbox with the servers that it has, and their states, once none is starting if the caller wants to
        wait. Raises: EngineError, SandboxFailed, ServerStartFailed.
        """
        try:
            async with asyncio.timeout(self._listen_deadline_s):
                known = await self._configure(sandbox, pod, _address_of(pod))
        except (TimeoutError, PodUnreachableError) as error:
            raise await self._did_not_come_up(pod, error) from error
        return await self._finish(sandbox, pod, known)

    async def _configure(self, sandbox: Sandbox, pod: PodRecord, address: str) -> Sequence[ServerStatus]:
        """Gives the states of its MCP servers, as the gateway answers when it is told of them."""
        init = self._agents.init(address, pod.secrets.agent_token, _agent_init(sandbox, pod))
        gateway = sandbox.secrets.gateway
        if gateway is None:
            await init
            return ()
        if gateway.needs_workspace:
            # The gateway calls at the agent's stdio door, which opens with the agent's configuration.
            await init
            return await self._setup.configure(sandbox, pod, address)
        known: list[ServerStatus] = []

        async def tell_gateway() -> None:
            known.extend(await self._setup.configure(sandbox, pod, address))

        await all_of([init, tell_gateway()])
        return known

    async def _finish(
        self, sandbox: Sandbox, pod: PodRecord, known: Sequence[ServerStatus]
    ) -> tuple[Sandbox, tuple[ServerStatus, ...]]:
        """What takes its time once the pod is configured: the template's programs and the MCP servers.

        `known` is how these were when the gateway was told of them.
        """
        address = _address_of(pod)
        attached = await self._setup.attach(sandbox, pod, address)
        start_command = sandbox.template.start_command
        if start_command is not None:
            await self._launch(attached, address, start_command)
        is_news = attached is sandbox and start_command is None
        return attached, await self._setup.settle(attached, pod, address, known=known if is_news else None)

    async def _launch(self, sandbox: Sandbox, address: str, start_command: str) -> None:
        """Run the template's start command, and wait until its ready command says that it is up."""
        token, template = sandbox.secrets.access_token, sandbox.template
        try:
            async with asyncio.timeout(_READY_DEADLINE_S):
                await self._agents.start_command(
                    address, token, start_command, user=template.user, cwd=template.workdir
                )
                if template.ready_command is None:
                    return
                ready = tenacity.AsyncRetrying(
                    wait=tenacity.wait_fixed(_READY_POLL_S), retry=tenacity.retry_if_result(lambda code: code != 0)
                )
                await ready(
                    self._agents.run_command,
                    address,
                    token,
                    template.ready_command,
                    user=template.user,
                    cwd=template.workdir,
                )
        except TimeoutError as error:
            raise SandboxFailed(
                f"Template {template.name!r} was not ready within {_READY_DEADLINE_S:g} s: its ready command"
                f" ({template.ready_command!r}) never exited with 0."
            ) from error
        except PodUnreachableError as error:
            raise SandboxFailed(f"The start command of template {template.name!r} could not be run: {error}") from error

    async def _did_not_come_up(self, pod: PodRecord, error: Exception) -> SandboxFailed:
        reason = str(error) or f"no answer in {self._listen_deadline_s:g} s"
        seen = (await self._engine.observe()).get(pod.id)
        roles = [container.role for container in seen.containers] if seen is not None else []
        logs = [f"{role}: {await self._engine.logs(pod.id, role, tail=_LOG_TAIL) or 'no output'}" for role in roles]
        whose = f"Sandbox {pod.sandbox_id}" if pod.sandbox_id is not None else f"Pod {pod.id}"
        return SandboxFailed(f"{whose} did not come up ({reason}). Last output of " + "; ".join(logs))

    async def until_prepared(self) -> None:
        """Returns once containers may be started. Raises: EngineUnavailable if the guard is not in place in time."""
        if self._prepared.is_set():
            return
        await self._engine.check()
        try:
            async with asyncio.timeout(_PREPARE_WAIT_S):
                await self._prepared.wait()
        except TimeoutError:
            raise EngineUnavailable("its networks could not be prepared yet, for the reason in the log.") from None


def _address_of(pod: PodRecord) -> str:
    if pod.address is None:
        raise EngineError(f"Pod {pod.id} has no address.")
    return pod.address


def _agent_init(sandbox: Sandbox, pod: PodRecord) -> dict[str, Any]:
    """The body of the agent's `/init`; docs/ARCHITECTURE.md, section 6.1."""
    body: dict[str, Any] = {
        "sandboxId": sandbox.id,
        "templateId": sandbox.template.template_id,
        "teamId": sandbox.team_id,
        "accessToken": sandbox.secrets.access_token,
        "envs": {**sandbox.template.envs, **sandbox.secrets.envs},
        "stdioToken": pod.secrets.stdio_token,
    }
    if sandbox.template.user is not None:
        body["defaultUser"] = sandbox.template.user
    if sandbox.template.workdir is not None:
        body["defaultWorkdir"] = sandbox.template.workdir
    if sandbox.secrets.mcp_token is not None:
        body["mcpToken"] = sandbox.secrets.mcp_token
    return body
