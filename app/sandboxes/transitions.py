"""Moves sandboxes from one state to another: starts, pauses, resumes, changes and stops them, one move at a time each.

Only this starts, pauses and stops their containers. What has to be done follows from the rows: a verb says in the row
where it goes, does it, and says that it is there, so that the reconciler can finish, or take back, what was cut short.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import structlog
import tenacity

from app.catalog import Catalog
from app.engines.interface import EgressRules, Engine, Pod
from app.errors import Conflict, EngineError, PodGone, SandgateError
from app.packages import PackageStore
from app.sandboxes.background import Background
from app.sandboxes.container_calls import ContainerCalls
from app.sandboxes.directory import Directory
from app.sandboxes.failures import engine_problem, find_live, sandbox_not_found, start_problem
from app.sandboxes.gateway_requests import GatewayRequests
from app.sandboxes.gateway_setup import GatewaySetup
from app.sandboxes.image_pulls import ImagePulls
from app.sandboxes.journal import Journal, Level
from app.sandboxes.models import LiveSandbox, McpOptions, PauseMode, PodRecord, Sandbox, ServerStatus, Status
from app.sandboxes.moves import Moves
from app.sandboxes.network_rules import NetworkRules
from app.sandboxes.planning import Blueprint, SandboxPlan
from app.sandboxes.pod_clients import AgentClient, GatewayClient
from app.sandboxes.pod_starter import PodStarter
from app.sandboxes.store import Store
from app.sandboxes.tool_memory import ToolMemory

_SERVERS_WAIT_S = 60.0
_TAKE_BACK_S = 10.0
"""For what a failed pause or resume does to leave the sandbox as it was; the caller still waits for the reason."""
_WORKSPACE = "workspace"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class BroughtUp:
    live: LiveSandbox
    servers: tuple[ServerStatus, ...]


class Transitions:
    def __init__(
        self,
        *,
        store: Store,
        engine: Engine,
        agents: AgentClient,
        gateways: GatewayClient,
        memory: ToolMemory,
        journal: Journal,
        packages: PackageStore,
        directory: Directory,
        catalog: Catalog,
        blueprint: Blueprint,
        background: Background,
        now: Callable[[], datetime],
        listen_deadline_s: float = 20.0,
    ) -> None:
        """`listen_deadline_s` is how long agent and gateway of a started pod may take to listen."""
        self._store = store
        self._engine = engine
        self._agents = agents
        self._journal = journal
        self._directory = directory
        self._background = background
        self._now = now
        self._moves = Moves(background.spawn)
        self._starting = 0
        self._stopping: set[str] = set()
        self.unenforced: set[str] = set()
        """Sandboxes whose rules are recorded and could not be put in force."""
        self._setup = GatewaySetup(
            store=store,
            engine=engine,
            gateways=gateways,
            pulls=ImagePulls(engine, background.spawn),
            memory=memory,
            packages=packages,
            directory=directory,
            catalog=catalog,
            blueprint=blueprint,
        )
        self.starter = PodStarter(
            store=store,
            engine=engine,
            agents=agents,
            gateways=gateways,
            setup=self._setup,
            now=now,
            listen_deadline_s=listen_deadline_s,
        )
        self._requests = GatewayRequests(
            setup=self._setup,
            calls=ContainerCalls(engine),
            gateways=gateways,
            directory=directory,
            moves=self._moves,
            spawn=background.spawn,
        )

    async def make_tools_searchable(self) -> None:
        """Let searches of the catalog find the tools that are remembered from earlier."""
        await self._setup.make_all_searchable()

    # -- starting ---------------------------------------------------------------------------------------------------

    async def bring_up(self, sandbox: Sandbox, pod: PodRecord, plan: SandboxPlan) -> BroughtUp:
        """Start a recorded sandbox; returns once it can be used. After a failure nothing of it stays.

        Raises: EngineAway, TooBusy, OutOfSpace, InvalidRequest (image of a server), ServerStartFailed, SandboxFailed,
        Conflict (told to stop meanwhile).
        """
        self._starting += 1
        try:
            self._journal.record(sandbox.id, f"Created from template {sandbox.template.name}.")
            return await self._moves.run(sandbox.id, lambda: self._start(sandbox, pod, plan), name="start")
        finally:
            self._starting -= 1

    @property
    def is_starting(self) -> bool:
        """Somebody waits for a sandbox."""
        return self._starting > 0

    async def _start(self, sandbox: Sandbox, pod: PodRecord, plan: SandboxPlan) -> BroughtUp:
        began = asyncio.get_running_loop().time()
        is_cold = pod.address is None
        try:
            async with asyncio.timeout(plan.deadline_s):
                started = await self.starter.start_sandbox(sandbox, pod, plan)
            live = await self._publish(started.sandbox, started.pod, timeout_s=sandbox.timeout_s)
        except Exception as error:
            problem = start_problem(error, sandbox.id, plan)
            log = _log.warning if isinstance(error, SandgateError | TimeoutError) else _log.exception
            log("sandbox_failed", sandbox_id=sandbox.id, problem=type(problem).__name__, reason=problem.message)
            self._journal.record(sandbox.id, f"Failed to start: {problem.message}", level=Level.ERROR)
            try:
                await self._store.ask_to_stop(sandbox.id, failure=problem.message)
            finally:
                self.stop_soon(sandbox.id)  # also where the database is away: this goes on until it is back
            raise problem from error
        took_s = round(asyncio.get_running_loop().time() - began, 4)
        _log.info(
            "sandbox_started",
            sandbox_id=sandbox.id,
            pod_id=started.pod.id,
            template=sandbox.template.name,
            warm=not is_cold and started.pod.id == pod.id,
            took_s=took_s,
        )
        self._journal.record(sandbox.id, f"Started in {took_s} s.")
        self._record_servers(sandbox.id, started.servers)
        self._learn_soon(live)
        return BroughtUp(live, started.servers)

    def _record_servers(self, sandbox_id: str, servers: Iterable[ServerStatus]) -> None:
        for server in servers:
            level = Level.ERROR if server.state == "failed" else Level.INFO
            why = "" if server.message is None else f": {server.message}"
            self._journal.record(sandbox_id, f"MCP server {server.name} is {server.state}{why}", level=level)

    def servers_aside(self, sandbox: Sandbox) -> tuple[ServerStatus, ...]:
        """Those of a sandbox's MCP servers that its gateway is not told of (yet)."""
        return self._setup.servers_aside(sandbox)

    def _learn_soon(self, live: LiveSandbox) -> None:
        """Remember what its servers list, for the next sandbox that has them."""
        if live.sandbox.secrets.gateway is not None and live.address is not None:
            learning = self._setup.learn(live.sandbox, live.pod, live.sandbox.secrets.gateway, live.address)
            self._background.spawn(learning, f"learn from {live.sandbox_id}")

    async def _publish(self, sandbox: Sandbox, pod: PodRecord, *, timeout_s: int) -> LiveSandbox:
        """The sandbox runs, for `timeout_s` from now. Raises: Conflict if it was told to stop meanwhile."""
        now = self._now()
        ends_at = now + timedelta(seconds=timeout_s)
        assert pod.address is not None
        if not await self._store.mark_running(
            sandbox.id, started_at=now, ends_at=ends_at, pod_id=pod.id, address=pod.address
        ):
            raise Conflict(f"Sandbox {sandbox.id} was stopped meanwhile.")
        running = replace(
            sandbox,
            status=Status.RUNNING,
            target=Status.RUNNING,
            started_at=now,
            ends_at=ends_at,
            timeout_s=timeout_s,
            pause_mode=None,
        )
        live = LiveSandbox(sandbox=running, pod=pod, address=pod.address)
        self._take_up(live)
        return live

    async def _renew_boot_id(self, pod: PodRecord) -> None:
        try:
            await self._engine.set_boot_id(pod.id, _WORKSPACE, str(uuid.uuid4()))
        except EngineError as error:
            # Kernels before 5.2 and engines without root cannot; whoever does not ask for it misses nothing.
            _log.warning("boot_id_not_renewed", pod_id=pod.id, reason=str(error))

    async def adopt(self, sandbox: Sandbox, pod: PodRecord, seen: Pod | None) -> None:
        """Take up a sandbox that an earlier control plane, or this one, left as its row says."""
        await self._enforce(sandbox, pod)
        address = seen.address if seen is not None and sandbox.status is Status.RUNNING else None
        self._take_up(LiveSandbox(sandbox=sandbox, pod=pod, address=address))

    async def _enforce(self, sandbox: Sandbox, pod: PodRecord) -> None:
        """Put the rules of a pod in force that was not started with them just now."""
        has_others = sandbox.network.egress != EgressRules() or sandbox.id in self.unenforced
        if sandbox.has_egress and has_others:
            await self._engine.set_network(pod.id, sandbox.network.egress)
            self.unenforced.discard(sandbox.id)

    def _take_up(self, live: LiveSandbox) -> None:
        self._directory.put(live)
        if live.address is not None:
            self._requests.watch(live)

    # -- pausing and resuming ---------------------------------------------------------------------------------------

    async def pause(self, sandbox_id: str, mode: PauseMode, *, if_over_at: datetime | None = None) -> None:
        """`if_over_at`: only if its time is over then.

        Raises: Conflict if the sandbox does not run, or has time left; EngineAway, SandboxFailed.
        """
        await self._moves.run(sandbox_id, lambda: self._pause(sandbox_id, mode, if_over_at), name="pause")

    async def _pause(self, sandbox_id: str, mode: PauseMode, if_over_at: datetime | None) -> None:
        if not await self._store.ask_to_pause(sandbox_id, mode, if_over_at=if_over_at):
            raise Conflict(f"Sandbox {sandbox_id} is not running, so it cannot be paused.")
        live = self._directory.find(sandbox_id)
        try:
            await self.finish_pause(sandbox_id, mode)
        except Exception as error:
            # A sandbox that could not be paused goes on; where even that fails, the sweep pauses it later.
            if live is not None:
                with suppress(EngineError, TimeoutError):
                    async with asyncio.timeout(_TAKE_BACK_S):
                        await self._engine.resume(live.pod.id)
                    if await self._store.take_back_pause(sandbox_id):
                        self._take_up(live)
            raise engine_problem(error, f"Sandbox {sandbox_id} could not be paused") from error
        self._journal.record(sandbox_id, f"Paused; what is kept: {mode}.")
        _log.info("sandbox_paused", sandbox_id=sandbox_id, mode=mode)

    async def finish_pause(self, sandbox_id: str, mode: PauseMode) -> None:
        """Bring a sandbox whose target is paused there."""
        pod = await self._store.pod_of(sandbox_id)
        sandbox = await self._store.find(sandbox_id)
        if pod is None or sandbox is None:
            raise sandbox_not_found(sandbox_id)
        paused = replace(sandbox, status=Status.PAUSED, target=Status.PAUSED, pause_mode=mode)
        self._directory.put(LiveSandbox(sandbox=paused, pod=pod, address=None))
        if mode is PauseMode.MEMORY:
            await self._engine.pause(pod.id)
        else:
            await self._engine.halt(pod.id)
        await self._store.mark_paused(sandbox_id, mode)

    async def resume(self, sandbox_id: str, *, timeout_s: int, reboot: bool = False) -> BroughtUp:
        """Let a paused sandbox run again, for `timeout_s` from now; one that runs already is left as it is.

        With `reboot` it keeps its files only. Raises: NotFound, EngineAway, ServerStartFailed, SandboxFailed.
        """
        return await self._moves.run(sandbox_id, lambda: self._resume(sandbox_id, timeout_s, reboot), name="resume")

    async def _resume(self, sandbox_id: str, timeout_s: int, reboot: bool) -> BroughtUp:
        live = find_live(sandbox_id, self._directory)
        if live.address is not None:
            return BroughtUp(live, ())
        sandbox, pod, mode = live.sandbox, live.pod, live.sandbox.pause_mode
        if not await self._store.ask_to_run(sandbox_id, timeout_s=timeout_s):
            raise sandbox_not_found(sandbox_id)
        try:
            if reboot and mode is PauseMode.MEMORY:
                await self._engine.halt(pod.id)
                mode = PauseMode.FILESYSTEM
                await self._store.mark_halted(sandbox_id)
            if mode is PauseMode.FILESYSTEM:
                # Its containers start anew, after a reboot of the host perhaps, which took the guard along.
                await self.starter.until_prepared()
            resumed = await self._engine.resume(pod.id)
            if resumed.address is None:
                raise EngineError(f"Pod {pod.id} was resumed and has no address.")
            pod = replace(pod, address=resumed.address)
            servers: tuple[ServerStatus, ...] = ()
            if mode is PauseMode.FILESYSTEM:
                await self._enforce(sandbox, pod)  # its address may be another one
                await self._renew_boot_id(pod)
                sandbox, servers = await self.starter.configure(sandbox, pod)
            running = await self._publish(sandbox, pod, timeout_s=timeout_s)
        except PodGone as error:
            failure = f"Sandbox {sandbox_id} lost its containers while it was paused."
            await self._store.ask_to_stop(sandbox_id, failure=failure)
            self.stop_soon(sandbox_id)
            raise sandbox_not_found(sandbox_id) from error
        except Exception as error:
            # Nothing is lost: it goes back to where it was, by itself or by the sweep, and can be resumed again.
            if await self._store.take_back_resume(sandbox_id):
                with suppress(EngineError, TimeoutError):
                    async with asyncio.timeout(_TAKE_BACK_S):
                        await self.finish_pause(sandbox_id, mode or PauseMode.MEMORY)
            raise engine_problem(error, f"Sandbox {sandbox_id} could not be resumed") from error
        self._journal.record(sandbox_id, "Resumed.")
        self._record_servers(sandbox_id, servers)
        _log.info("sandbox_resumed", sandbox_id=sandbox_id, mode=mode)
        return BroughtUp(running, servers)

    async def change_servers(
        self, sandbox_id: str, changes: Mapping[str, Mapping[str, Any] | None], options: McpOptions | None
    ) -> BroughtUp:
        """Add, replace and, where the value is None, remove MCP servers of a running sandbox. No options: as they are.

        Raises: NotFound, Conflict, InvalidRequest, EngineAway, ServerStartFailed.
        """

        async def change_them() -> BroughtUp:
            live = find_live(sandbox_id, self._directory)
            if live.address is None:
                raise Conflict(f"Sandbox {sandbox_id} is paused: connect to it first.")
            secrets = live.sandbox.secrets
            mcp = {key: given for key, given in {**secrets.mcp, **changes}.items() if given is not None}
            wanted = options or secrets.mcp_options
            try:
                live, servers = await self._setup.replace_servers(
                    live, live.address, mcp, wanted, caller_token=None, wait_s=_SERVERS_WAIT_S
                )
            except SandgateError as error:
                raise engine_problem(error, f"The MCP servers of sandbox {sandbox_id} could not be replaced") from error
            self._record_servers(sandbox_id, servers)
            self._learn_soon(live)
            return BroughtUp(live, servers)

        return await self._moves.run(sandbox_id, change_them, name="set servers of")

    async def answers(self, sandbox_id: str) -> bool:
        """Whether the sandbox's agent answers within 5 s. Raises: NotFound, EngineAway."""
        live = find_live(sandbox_id, self._directory)
        if live.address is None:
            return False
        return await self._agents.is_healthy(live.address)

    async def snapshot(self, sandbox_id: str, image: str) -> None:
        """Keep the files of a sandbox's workspace as an image.

        Raises: NotFound, EngineAway, OutOfSpace, SandboxFailed.
        """

        async def save() -> None:
            live = find_live(sandbox_id, self._directory)
            try:
                await self._engine.snapshot(live.pod.id, _WORKSPACE, image)
            except Exception as error:
                raise engine_problem(error, f"Sandbox {sandbox_id} could not be saved") from error

        await self._moves.run(sandbox_id, save, name="snapshot")

    async def set_network(self, sandbox_id: str, rules: NetworkRules) -> None:
        """Replace a sandbox's rules and put them in force. Raises: NotFound, EngineAway, SandboxFailed."""

        async def put_in_force() -> None:
            live = find_live(sandbox_id, self._directory)
            # The row first: what it says is put in force again by whoever starts next.
            await self._store.set_network(sandbox_id, rules)
            self._directory.change(sandbox_id, network=rules)
            try:
                self.unenforced.add(sandbox_id)
                await self._engine.set_network(live.pod.id, rules.egress)
                self.unenforced.discard(sandbox_id)
            except Exception as error:
                raise engine_problem(
                    error, f"The network rules of sandbox {sandbox_id} are not in force yet"
                ) from error

        await self._moves.run(sandbox_id, put_in_force, name="set network of")

    async def enforce_again(self, sandbox_id: str) -> None:
        """Put rules in force that a caller was told are not in force yet."""

        async def enforce() -> None:
            live = self._directory.find(sandbox_id)
            if live is not None and live.sandbox.pause_mode is PauseMode.FILESYSTEM:
                return  # it gets its rules when it boots
            if live is not None:
                await self._engine.set_network(live.pod.id, live.sandbox.network.egress)
            self.unenforced.discard(sandbox_id)

        await self.as_move(sandbox_id, enforce, name="enforce rules of")

    # -- stopping ---------------------------------------------------------------------------------------------------

    def stop_soon(self, sandbox_id: str) -> None:
        """Bring down a sandbox whose target is stopped, in the background. Nothing is routed to it from now on."""
        self._directory.remove(sandbox_id)
        if sandbox_id not in self._stopping:
            self._stopping.add(sandbox_id)
            self._journal.record(sandbox_id, "Told to stop.")
            self._background.spawn(self._tear_down(sandbox_id), f"stop {sandbox_id}")

    async def _tear_down(self, sandbox_id: str) -> None:
        await self._moves.end(sandbox_id)
        self._directory.remove(sandbox_id)  # once more, for what a move put there before it ended
        self._setup.forget(sandbox_id)
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
        self._moves.forget(sandbox_id)
        self._journal.record(sandbox_id, "Stopped.")
        _log.info("sandbox_stopped", sandbox_id=sandbox_id)
        await self.remove_unused_images()

    async def remove_unused_images(self) -> None:
        """What forks were made from goes with the last of them. An image that something still needs stays for now."""
        for image in await self._store.unused_fork_images():
            try:
                is_gone = await self._engine.remove_image(image)
            except EngineError as error:
                _log.warning("fork_image_not_removed", image=image, reason=str(error))
                continue
            if is_gone:
                await self._store.forget_fork_image(image)

    # -- one at a time ----------------------------------------------------------------------------------------------

    def is_moving(self, sandbox_id: str) -> bool:
        return self._moves.is_moving(sandbox_id)

    async def as_move(self, sandbox_id: str, work: Callable[[], Coroutine[Any, Any, None]], *, name: str) -> None:
        """Do what nobody waits for. One sandbox's trouble keeps the sweep from no other; the next one tries again."""
        try:
            await self._moves.run(sandbox_id, work, name=name)
        except Conflict:
            pass  # it is being stopped, which settles it too
        except EngineError as error:
            _log.warning("sandbox_not_swept", sandbox_id=sandbox_id, doing=name, reason=str(error))

    async def until_settled(self, sandbox_id: str) -> None:
        """Returns once nothing moves the sandbox."""
        await self._moves.until_still(sandbox_id)


def _exception_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
