"""Moves sandboxes to where they should be. The only place that starts and stops pods.

What has to be done follows from the rows alone, so a control plane that was killed anywhere goes on after its next
start: rows that were starting are told to stop, rows that were running are adopted if their pod still runs, and pods
that no row wants are removed. A pod's row is written before the engine hears of it, so no pod can be without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import structlog
import tenacity

from app.catalog import Catalog
from app.engines.interface import ContainerStatus, Engine, Pod
from app.errors import (
    Conflict,
    EngineAway,
    EngineError,
    EngineOutOfSpace,
    EngineUnavailable,
    ImageMissing,
    InvalidRequest,
    OutOfSpace,
    Problem,
    SandboxFailed,
    SandgateError,
    ServerStartFailed,
)
from app.sandboxes.directory import Directory
from app.sandboxes.models import LiveSandbox, PodRecord, Sandbox, ServerStatus
from app.sandboxes.planning import (
    STDIO_BRIDGE,
    Blueprint,
    SandboxPlan,
    check_known,
    make_gateway_config,
    make_pod_spec,
    plan_gateway,
)
from app.sandboxes.pod_clients import AgentClient, GatewayClient, PodUnreachableError
from app.sandboxes.store import Store

_SWEEP_INTERVAL_S = 15.0
_PREPARE_INTERVAL_S = 300.0
_LONGEST_SLEEP_S = 30.0
_PREPARE_WAIT_S = 20.0
_ADOPT_WAIT_S = 5.0
_REQUESTS_POLL_S = 50.0
_REQUEST_DEADLINE_S = 55.0
_WATCH_RETRY_S = 5.0
_LOG_TAIL = 20

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class BroughtUp:
    live: LiveSandbox
    servers: tuple[ServerStatus, ...]


class Reconciler:
    def __init__(
        self,
        *,
        store: Store,
        engine: Engine,
        agents: AgentClient,
        gateways: GatewayClient,
        directory: Directory,
        catalog: Catalog,
        blueprint: Blueprint,
        now: Callable[[], datetime],
        listen_deadline_s: float = 20.0,
    ) -> None:
        """`listen_deadline_s` is how long agent and gateway of a started pod may take to listen."""
        self._listen_deadline_s = listen_deadline_s
        self._store = store
        self._engine = engine
        self._agents = agents
        self._gateways = gateways
        self._directory = directory
        self._catalog = catalog
        self._blueprint = blueprint
        self._now = now
        self._tasks: asyncio.TaskGroup
        self._swept = asyncio.Event()
        """The first sweep is over, well or not."""
        self._prepared = asyncio.Event()
        self._expiry_moved = asyncio.Event()
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._stopping: set[str] = set()
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._stdio_bridge: bytes | None = None
        directory.on_removal(self._end_watch)

    async def run(self, ready: asyncio.Event) -> None:
        """Work until cancelled; pods are left running at the end.

        `ready` is set once `bring_up` may be called and what runs is adopted, so that nobody takes a running sandbox
        for one that is gone; with an engine that does not answer, without that.
        """
        # Before the first create of this process: what is starting now was started by one that is gone.
        await self._store.abandon_starting()
        async with asyncio.TaskGroup() as self._tasks:
            self._spawn(self._adopt_and_sweep(), "sweep")
            self._spawn(self._expire(), "expire")
            with suppress(TimeoutError):
                async with asyncio.timeout(_ADOPT_WAIT_S):
                    await self._swept.wait()
            ready.set()

    # -- starting ---------------------------------------------------------------------------------------------------

    async def bring_up(self, sandbox: Sandbox, pod: PodRecord, plan: SandboxPlan, *, lifetime: timedelta) -> BroughtUp:
        """Start a recorded sandbox; returns once it can be used. After a failure nothing of it stays.

        Raises: EngineAway, OutOfSpace, InvalidRequest (image of a server), ServerStartFailed, SandboxFailed, Conflict
        (told to stop meanwhile).
        """
        outcome: asyncio.Future[BroughtUp] = asyncio.get_running_loop().create_future()
        # The caller may be gone by the time the start fails; then the failure is recorded and nobody asks for it.
        outcome.add_done_callback(lambda done: done.cancelled() or done.exception())
        task = self._spawn(self._start(sandbox, pod, plan, lifetime, outcome), f"start {sandbox.id}")
        self._starting[sandbox.id] = task
        task.add_done_callback(lambda _: self._starting.pop(sandbox.id, None))
        return await asyncio.shield(outcome)

    async def _start(
        self,
        sandbox: Sandbox,
        pod: PodRecord,
        plan: SandboxPlan,
        lifetime: timedelta,
        outcome: asyncio.Future[BroughtUp],
    ) -> None:
        began = asyncio.get_running_loop().time()
        try:
            brought_up = await self._start_pod(sandbox, pod, plan, lifetime)
        except asyncio.CancelledError:
            # Told to stop, or the control plane ends: in both cases the row says what is to be done next.
            outcome.set_exception(Conflict(f"Sandbox {sandbox.id} was stopped while it was starting."))
            raise
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the caller gets an answer and the pod goes
            problem = _problem(error, sandbox, plan)
            outcome.set_exception(problem)
            log = _log.warning if isinstance(error, SandgateError | TimeoutError) else _log.exception
            log("sandbox_failed", sandbox_id=sandbox.id, problem=type(problem).__name__, reason=problem.message)
            await self._store.ask_to_stop(sandbox.id, failure=problem.message)
            self.stop_soon(sandbox.id)
        else:
            took_s = round(asyncio.get_running_loop().time() - began, 3)
            _log.info("sandbox_started", sandbox_id=sandbox.id, template=sandbox.template, took_s=took_s)
            outcome.set_result(brought_up)

    async def _start_pod(self, sandbox: Sandbox, pod: PodRecord, plan: SandboxPlan, lifetime: timedelta) -> BroughtUp:
        async with asyncio.timeout(plan.deadline_s):
            await self._until_prepared()
            observed = await self._engine.start(make_pod_spec(plan, pod, await self._bridge_for(plan)))
            if observed.address is None:
                raise EngineError(f"Pod {pod.id} was started and has no address.")
            await self._configure(sandbox, pod, plan, observed.address)
            servers: tuple[ServerStatus, ...] = ()
            if plan.gateway is not None:
                servers = await self._await_servers(sandbox, pod, observed.address)
        now = self._now()
        if not await self._store.mark_running(sandbox.id, started_at=now, ends_at=now + lifetime):
            raise Conflict(f"Sandbox {sandbox.id} was stopped while it was starting.")
        live = LiveSandbox(
            sandbox=replace(sandbox, started_at=now, ends_at=now + lifetime), pod=pod, address=observed.address
        )
        self._take_up(live)
        return BroughtUp(live, servers)

    async def _configure(self, sandbox: Sandbox, pod: PodRecord, plan: SandboxPlan, address: str) -> None:
        """The agent before the gateway, which calls at its stdio door.

        Raises: SandboxFailed with the last log lines of what did not come up.
        """
        try:
            async with asyncio.timeout(self._listen_deadline_s):
                await self._agents.init(address, pod.secrets.agent_token, _agent_init(sandbox, pod))
                if plan.gateway is not None:
                    tokens = sandbox.secrets.mcp_tokens
                    config = make_gateway_config(plan.gateway, sandbox.secrets.mcp_options, pod, tokens)
                    await self._gateways.configure(address, pod.secrets.gateway_token, config)
        except (TimeoutError, PodUnreachableError) as error:
            reason = str(error) or f"no answer in {self._listen_deadline_s:g} s"
            logs = [
                f"{role}: {await self._engine.logs(pod.id, role, tail=_LOG_TAIL) or 'no output'}"
                for role in (container.role for container in plan.containers)
            ]
            raise SandboxFailed(
                f"Sandbox {sandbox.id} did not come up ({reason}). Last output of " + "; ".join(logs)
            ) from error

    async def _await_servers(self, sandbox: Sandbox, pod: PodRecord, address: str) -> tuple[ServerStatus, ...]:
        """States of the MCP servers, once none is starting if the caller wants to wait. Raises: ServerStartFailed."""
        options = sandbox.secrets.mcp_options
        # The gateway itself gives up on a server after its own start time-out, so this ends well before 120 s.
        wait_s = 120.0 if options.wait else 0.0
        servers = await self._gateways.status(address, pod.secrets.gateway_token, wait_s=wait_s)
        if options.wait and options.on_failure == "fail":
            _raise_unless_ready(servers)
        return tuple(servers)

    async def _bridge_for(self, plan: SandboxPlan) -> bytes | None:
        if plan.gateway is None or not plan.gateway.image_servers:
            return None
        if self._stdio_bridge is None:
            self._stdio_bridge = await self._engine.read_file(self._blueprint.gateway_image, STDIO_BRIDGE)
        return self._stdio_bridge

    async def _until_prepared(self) -> None:
        if self._prepared.is_set():
            return
        await self._engine.check()
        try:
            async with asyncio.timeout(_PREPARE_WAIT_S):
                await self._prepared.wait()
        except TimeoutError:
            raise EngineUnavailable("its networks could not be prepared yet, for the reason in the log.") from None

    # -- stopping ---------------------------------------------------------------------------------------------------

    def stop_soon(self, sandbox_id: str) -> None:
        """Bring down a sandbox whose target is stopped, in the background. Nothing is routed to it from now on."""
        self._directory.remove(sandbox_id)
        if sandbox_id not in self._stopping:
            self._stopping.add(sandbox_id)
            self._spawn(self._tear_down(sandbox_id), f"stop {sandbox_id}")

    async def _tear_down(self, sandbox_id: str) -> None:
        if (start := self._starting.get(sandbox_id)) is not None:
            start.cancel()
            await asyncio.wait([start])
        retrying = tenacity.AsyncRetrying(
            wait=tenacity.wait_exponential(multiplier=0.5, max=30),
            retry=tenacity.retry_if_exception_type(Exception),
            before_sleep=lambda state: _log.warning(
                "stop_failed", sandbox_id=sandbox_id, attempt=state.attempt_number, reason=str(_exception_of(state))
            ),
        )
        async for attempt in retrying:
            with attempt:
                pod = await self._store.pod_of(sandbox_id)
                if pod is not None:
                    await self._engine.stop(pod.id)
                await self._store.mark_stopped(sandbox_id, self._now())
        self._stopping.discard(sandbox_id)
        _log.info("sandbox_stopped", sandbox_id=sandbox_id)

    # -- expiring ---------------------------------------------------------------------------------------------------

    def expiry_moved(self) -> None:
        """A sandbox may end earlier than was known."""
        self._expiry_moved.set()

    async def _expire(self) -> None:
        while True:
            try:
                await self._expire_due()
            except Exception:  # noqa: BLE001 - as for the sweep
                _log.exception("expiry_failed")
                await asyncio.sleep(1.0)

    async def _expire_due(self) -> None:
        """End what is due, then sleep until the next one is."""
        self._expiry_moved.clear()
        for sandbox_id in await self._store.expired(self._now()):
            _log.info("sandbox_expired", sandbox_id=sandbox_id)
            await self._store.ask_to_stop(sandbox_id)
            self.stop_soon(sandbox_id)
        next_expiry = await self._store.next_expiry()
        sleep_s = _LONGEST_SLEEP_S if next_expiry is None else (next_expiry - self._now()).total_seconds()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(sleep_s, 0.0), _LONGEST_SLEEP_S)):
                await self._expiry_moved.wait()

    # -- adopting and sweeping --------------------------------------------------------------------------------------

    async def _adopt_and_sweep(self) -> None:
        loop = asyncio.get_running_loop()
        prepare_at = loop.time()
        while True:
            try:
                try:
                    await self._sweep()
                finally:
                    self._swept.set()
                if loop.time() >= prepare_at:
                    # Again and again, because whoever flushes the host's packet filter takes the guard's rules along.
                    await self._engine.prepare()
                    self._prepared.set()
                    prepare_at = loop.time() + _PREPARE_INTERVAL_S
            except EngineError as error:
                _log.warning("engine_unavailable", reason=str(error))
            except Exception:  # noqa: BLE001 - a full disk or a database that is away for a while must not end the sweep
                _log.exception("sweep_failed")
            await asyncio.sleep(_SWEEP_INTERVAL_S if self._prepared.is_set() else 1.0)

    async def _sweep(self) -> None:
        """Hold rows against pods: adopt, fail what died, remove what nobody wants."""
        running = await self._store.running()
        observed = await self._engine.observe()
        recorded = await self._store.pods()
        pod_of = {pod.sandbox_id: pod for pod in recorded.values()}
        for sandbox in running:
            pod = pod_of.get(sandbox.id)
            seen = observed.get(pod.id) if pod is not None else None
            if pod is None or seen is None or not seen.is_running:
                failure = _death(sandbox.id, seen)
                _log.warning("sandbox_died", sandbox_id=sandbox.id, reason=failure)
                if await self._store.ask_to_stop(sandbox.id, failure=failure):
                    self.stop_soon(sandbox.id)
            elif self._directory.find(sandbox.id) is None and seen.address is not None:
                _log.info("sandbox_adopted", sandbox_id=sandbox.id)
                self._take_up(LiveSandbox(sandbox=sandbox, pod=pod, address=seen.address))
        for pod_id in observed.keys() - recorded.keys():
            _log.warning("pod_without_row_removed", pod_id=pod_id)
            await self._engine.stop(pod_id)
        for sandbox_id in await self._store.to_stop():
            self.stop_soon(sandbox_id)

    # -- what the workspace asks its gateway for --------------------------------------------------------------------

    def _take_up(self, live: LiveSandbox) -> None:
        self._directory.put(live)
        self.expiry_moved()
        if live.sandbox.has_gateway:
            self._watches[live.sandbox_id] = self._spawn(
                self._serve_requests(live.sandbox_id), f"watch {live.sandbox_id}"
            )

    def _end_watch(self, sandbox_id: str) -> None:
        if (watch := self._watches.pop(sandbox_id, None)) is not None:
            watch.cancel()

    async def _serve_requests(self, sandbox_id: str) -> None:
        """Answer `mcp-gateway` calls made in the workspace, as long as the sandbox is live."""
        while (live := self._directory.find(sandbox_id)) is not None:
            token = live.pod.secrets.gateway_token
            try:
                for request in await self._gateways.requests(live.address, token, wait_s=_REQUESTS_POLL_S):
                    failure = await self._serve_request(live, request)
                    await self._gateways.settle(live.address, token, request["id"], failure=failure)
            except PodUnreachableError as error:
                _log.warning("gateway_unreachable", sandbox_id=sandbox_id, reason=str(error))
                await asyncio.sleep(_WATCH_RETRY_S)

    async def _serve_request(self, live: LiveSandbox, request: Mapping[str, Any]) -> str | None:
        """What went wrong, or None."""
        try:
            async with asyncio.timeout(_REQUEST_DEADLINE_S):
                if "pull" in request:
                    check_known(request["pull"], self._catalog)
                else:
                    await self._reconfigure(live, request["mcp"], request["token"])
        except Problem as problem:
            return problem.message
        except TimeoutError:
            return f"The servers were not up within {_REQUEST_DEADLINE_S:g} s."
        return None

    async def _reconfigure(self, live: LiveSandbox, mcp: Mapping[str, Mapping[str, Any]], token: str) -> None:
        """Replace the servers of a running sandbox. Raises: InvalidRequest, ServerStartFailed."""
        old = live.sandbox.secrets
        options = replace(old.mcp_options, placement={k: v for k, v in old.mcp_options.placement.items() if k in mcp})
        plan = plan_gateway(mcp, options, self._catalog, self._blueprint)
        was = plan_gateway(old.mcp, old.mcp_options, self._catalog, self._blueprint)
        if plan.image_servers != was.image_servers:
            raise InvalidRequest(
                "MCP servers that run from an image have containers of their own, which are made with the sandbox:"
                " name them when the sandbox is created."
            )
        secrets = replace(old, mcp=mcp, mcp_options=options, caller_mcp_token=token)
        await self._store.set_secrets(live.sandbox_id, secrets)
        self._directory.put(replace(live, sandbox=replace(live.sandbox, secrets=secrets)))
        config = make_gateway_config(plan, options, live.pod, secrets.mcp_tokens)
        await self._gateways.configure(live.address, live.pod.secrets.gateway_token, config)
        servers = await self._gateways.status(live.address, live.pod.secrets.gateway_token, wait_s=_REQUEST_DEADLINE_S)
        if options.on_failure == "fail":
            _raise_unless_ready(servers)

    # -- tasks ------------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._tasks.create_task(_guarded(work, name), name=name)


async def _guarded(work: Coroutine[Any, Any, None], name: str) -> None:
    """One sandbox's trouble must not end the work on all others, as an exception in a task group would."""
    try:
        await work
    except Exception:  # noqa: BLE001 - logged here, repaired by the next sweep
        _log.exception("task_failed", task=name)


def _agent_init(sandbox: Sandbox, pod: PodRecord) -> dict[str, Any]:
    """The body of the agent's `/init`; docs/ARCHITECTURE.md, section 6.1."""
    body: dict[str, Any] = {
        "sandboxId": sandbox.id,
        "templateId": sandbox.template,
        "teamId": sandbox.team_id,
        "accessToken": sandbox.secrets.access_token,
        "envs": dict(sandbox.secrets.envs),
        "stdioToken": pod.secrets.stdio_token,
    }
    if sandbox.secrets.mcp_token is not None:
        body["mcpToken"] = sandbox.secrets.mcp_token
    return body


def _raise_unless_ready(servers: Sequence[ServerStatus]) -> None:
    """Raises: ServerStartFailed if one of them is not ready, with the last lines of each."""
    failed = [server for server in servers if server.state != "ready"]
    if not failed:
        return
    told = []
    for server in failed:
        lines = "".join(f"\n  | {line}" for line in server.stderr)
        told.append(f"MCP server {server.name!r} {server.message or 'is still starting'}{lines}")
    raise ServerStartFailed("Failed to start MCP gateway: " + "\n".join(told))


def _exception_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None


def _death(sandbox_id: str, seen: Pod | None) -> str:
    if seen is None or not seen.containers:
        return f"The containers of sandbox {sandbox_id} are gone."
    ended = [_end_of(container) for container in seen.containers if container.state != "running"]
    return f"Sandbox {sandbox_id} lost " + ", ".join(ended or ["its network address"]) + "."


def _end_of(container: ContainerStatus) -> str:
    if container.exit_code is None:
        return f"its {container.role} container ({container.state})"
    reason = ", most likely out of memory" if container.exit_code == 137 else ""
    return f"its {container.role} container (exit code {container.exit_code}{reason})"


def _problem(error: Exception, sandbox: Sandbox, plan: SandboxPlan) -> Problem:
    """What the caller of a create is told."""
    match error:
        case Problem():
            return error
        case ImageMissing():
            if (server := plan.server_of_image(error.image)) is not None:
                return InvalidRequest(
                    f"Failed to start MCP gateway: MCP server {server!r} needs the image {error.image}, which is not"
                    " on the container engine and could not be used. Pull or build it there first."
                )
            return SandboxFailed(str(error))
        case EngineOutOfSpace():
            return OutOfSpace(f"The container engine's disk is full: {error} Free space there and try again.")
        case EngineUnavailable():
            return EngineAway(f"The container engine does not answer: {error} `sandgate doctor` tells more.")
        case TimeoutError():
            return SandboxFailed(f"Sandbox {sandbox.id} was not up within {plan.deadline_s:g} s and was removed.")
        case SandgateError():
            return SandboxFailed(f"Sandbox {sandbox.id} could not be started: {error}")
        case _:
            return SandboxFailed(
                f"Sandbox {sandbox.id} could not be started for an internal reason, which is in the server's log."
            )
