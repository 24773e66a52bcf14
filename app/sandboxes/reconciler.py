"""Moves sandboxes to where they should be. The only place that starts, pauses and stops them.

What has to be done follows from the rows alone, so a control plane that was killed anywhere goes on after its next
start: rows that were starting are told to stop, rows that were running or paused are adopted if their pod still is,
what was being paused is paused, and pods that no row wants are removed. A pod's row is written before the engine hears
of it, so no pod can be without one.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import structlog
import tenacity

from app.catalog import Catalog
from app.engines.interface import EgressRules, Engine, Pod
from app.errors import Conflict, EngineError, EngineUnavailable, PodGone, SandgateError
from app.packages import PackageStore
from app.sandboxes.directory import Directory
from app.sandboxes.expiry import Expiry
from app.sandboxes.failures import death, engine_problem, sandbox_not_found, start_problem
from app.sandboxes.gateway_requests import GatewayRequests
from app.sandboxes.gateway_setup import GatewaySetup
from app.sandboxes.image_pulls import ImagePulls
from app.sandboxes.journal import Journal, Level
from app.sandboxes.models import LiveSandbox, McpOptions, PauseMode, PodRecord, Sandbox, ServerStatus, Status
from app.sandboxes.moves import Moves
from app.sandboxes.network_rules import NetworkRules
from app.sandboxes.planning import VOLUME_LABEL, Blueprint, SandboxPlan
from app.sandboxes.pod_clients import AgentClient, GatewayClient
from app.sandboxes.pod_starter import PodStarter
from app.sandboxes.store import Store
from app.sandboxes.tool_memory import ToolMemory
from app.sandboxes.warm_pool import PoolPlan, PoolStatus, WarmPlans, WarmPool

_PREPARE_INTERVAL_S = 300.0
_ADOPT_WAIT_S = 5.0
_SERVERS_WAIT_S = 60.0
_WORKSPACE = "workspace"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class BroughtUp:
    live: LiveSandbox
    servers: tuple[ServerStatus, ...]


async def _no_pools() -> Sequence[PoolPlan]:
    return ()


class Reconciler:
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
        now: Callable[[], datetime],
        warm: WarmPlans = _no_pools,
        listen_deadline_s: float = 20.0,
        sweep_interval_s: float = 15.0,
    ) -> None:
        """`warm` tells which pods are to wait; `listen_deadline_s` is how long agent and gateway of a started pod may
        take to listen."""
        self._store = store
        self._engine = engine
        self._agents = agents
        self._journal = journal
        self._directory = directory
        self._now = now
        self._sweep_interval_s = sweep_interval_s
        self._tasks: asyncio.TaskGroup
        self._swept = asyncio.Event()
        """The first sweep is over, well or not."""
        self._stopping: set[str] = set()
        self._unenforced: set[str] = set()
        """Sandboxes whose rules are recorded and could not be put in force."""
        self._moves = Moves(self._spawn)
        self._starting = 0
        self._setup = GatewaySetup(
            store=store,
            engine=engine,
            gateways=gateways,
            pulls=ImagePulls(engine, self._spawn),
            memory=memory,
            packages=packages,
            directory=directory,
            catalog=catalog,
            blueprint=blueprint,
        )
        self._starter = PodStarter(
            store=store,
            engine=engine,
            agents=agents,
            gateways=gateways,
            setup=self._setup,
            now=now,
            listen_deadline_s=listen_deadline_s,
        )
        self._requests = GatewayRequests(
            setup=self._setup, gateways=gateways, directory=directory, catalog=catalog, spawn=self._spawn
        )
        self._expiry = Expiry(
            store=store, journal=journal, now=now, pause=self.pause, stop_soon=self.stop_soon, spawn=self._spawn
        )
        self._warm_pool = WarmPool(
            warm,
            store=store,
            engine=engine,
            starter=self._starter,
            now=now,
            is_busy=lambda: self._starting > 0,
        )

    async def run(self, ready: asyncio.Event) -> None:
        """Work until cancelled; pods are left as they are at the end.

        `ready` is set once `bring_up` may be called and what runs is adopted, so that nobody takes a running sandbox
        for one that is gone; with an engine that does not answer, without that.
        """
        # Before the first verb of this process: what is moving now was moved by one that is gone.
        await self._store.abandon_moves()
        async with asyncio.TaskGroup() as self._tasks:
            self._spawn(self._adopt_and_sweep(), "sweep")
            self._spawn(self._expiry.run(), "expire")
            self._spawn(self._setup.make_all_searchable(), "make remembered tools searchable")
            with suppress(TimeoutError):
                async with asyncio.timeout(_ADOPT_WAIT_S):
                    await self._swept.wait()
            self._spawn(self._warm_pool.keep_filled(), "keep pods warm")
            ready.set()

    # -- starting ---------------------------------------------------------------------------------------------------

    async def bring_up(self, sandbox: Sandbox, pod: PodRecord, plan: SandboxPlan) -> BroughtUp:
        """Start a recorded sandbox; returns once it can be used. After a failure nothing of it stays.

        Raises: EngineAway, TooBusy, OutOfSpace, InvalidRequest (image of a server), ServerStartFailed, SandboxFailed,
        Conflict (told to stop meanwhile).
        """
        # Somebody waits for it, warm or not: the pool, which learns that it is short of a pod, is to stay away from the
        # processors until the servers have started.
        self._starting += 1
        try:
            self._warm_pool.asked(plan.recipe, pod)
            self._journal.record(sandbox.id, f"Created from template {sandbox.template.name}.")
            return await self._moves.run(sandbox.id, lambda: self._start(sandbox, pod, plan), name="start")
        finally:
            self._starting -= 1

    def pools(self) -> list[PoolStatus]:
        return self._warm_pool.status()

    async def until_settled(self, sandbox_id: str) -> None:
        """Returns once nothing moves the sandbox."""
        await self._moves.until_still(sandbox_id)

    async def _start(self, sandbox: Sandbox, pod: PodRecord, plan: SandboxPlan) -> BroughtUp:
        began = asyncio.get_running_loop().time()
        is_cold = pod.address is None
        try:
            async with asyncio.timeout(plan.deadline_s):
                started = await self._starter.start_sandbox(sandbox, pod, plan)
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
            self._spawn(learning, f"learn from {live.sandbox_id}")

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

    async def _adopt(self, sandbox: Sandbox, pod: PodRecord, seen: Pod | None) -> None:
        """Take up a sandbox that an earlier control plane, or this one, left as its row says."""
        await self._enforce(sandbox, pod)
        address = seen.address if seen is not None and sandbox.status is Status.RUNNING else None
        self._take_up(LiveSandbox(sandbox=sandbox, pod=pod, address=address))

    async def _enforce(self, sandbox: Sandbox, pod: PodRecord) -> None:
        """Put the rules of a pod in force that was not started with them just now."""
        has_others = sandbox.network.egress != EgressRules() or sandbox.id in self._unenforced
        if sandbox.has_egress and has_others:
            await self._engine.set_network(pod.id, sandbox.network.egress)
            self._unenforced.discard(sandbox.id)

    def _take_up(self, live: LiveSandbox) -> None:
        self._directory.put(live)
        if live.address is not None:
            self._requests.watch(live)
            self._expiry.ends_at(live.sandbox.ends_at)

    def expiry_moved(self) -> None:
        """A sandbox may end earlier than was known."""
        self._expiry.moved()

    # -- pausing and resuming ---------------------------------------------------------------------------------------

    async def pause(self, sandbox_id: str, mode: PauseMode) -> None:
        """Raises: Conflict if the sandbox does not run, EngineAway, SandboxFailed."""
        await self._moves.run(sandbox_id, lambda: self._pause(sandbox_id, mode), name="pause")

    async def _pause(self, sandbox_id: str, mode: PauseMode) -> None:
        if not await self._store.ask_to_pause(sandbox_id, mode):
            raise Conflict(f"Sandbox {sandbox_id} is not running, so it cannot be paused.")
        live = self._directory.find(sandbox_id)
        try:
            await self._finish_pause(sandbox_id, mode)
        except Exception as error:
            # A sandbox that could not be paused goes on; where even that fails, the sweep pauses it later.
            if live is not None:
                with suppress(EngineError):
                    await self._engine.resume(live.pod.id)
                    if await self._store.take_back_pause(sandbox_id):
                        self._take_up(live)
            raise engine_problem(error, f"Sandbox {sandbox_id} could not be paused") from error
        self._journal.record(sandbox_id, f"Paused; what is kept: {mode}.")
        _log.info("sandbox_paused", sandbox_id=sandbox_id, mode=mode)

    async def _finish_pause(self, sandbox_id: str, mode: PauseMode) -> None:
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
        live = self._directory.find(sandbox_id)
        if live is None:
            raise sandbox_not_found(sandbox_id)
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
            resumed = await self._engine.resume(pod.id)
            if resumed.address is None:
                raise EngineError(f"Pod {pod.id} was resumed and has no address.")
            pod = replace(pod, address=resumed.address)
            servers: tuple[ServerStatus, ...] = ()
            if mode is PauseMode.FILESYSTEM:
                await self._enforce(sandbox, pod)  # its address may be another one
                await self._renew_boot_id(pod)
                sandbox, servers = await self._starter.configure(sandbox, pod)
            running = await self._publish(sandbox, pod, timeout_s=timeout_s)
        except PodGone as error:
            failure = f"Sandbox {sandbox_id} lost its containers while it was paused."
            await self._store.ask_to_stop(sandbox_id, failure=failure)
            self.stop_soon(sandbox_id)
            raise sandbox_not_found(sandbox_id) from error
        except Exception as error:
            # Nothing is lost: it goes back to where it was, by itself or by the sweep, and can be resumed again.
            if await self._store.take_back_resume(sandbox_id):
                with suppress(EngineError):
                    await self._finish_pause(sandbox_id, mode or PauseMode.MEMORY)
            raise engine_problem(error, f"Sandbox {sandbox_id} could not be resumed") from error
        self._journal.record(sandbox_id, "Resumed.")
        self._record_servers(sandbox_id, servers)
        _log.info("sandbox_resumed", sandbox_id=sandbox_id, mode=mode)
        return BroughtUp(running, servers)

    async def replace_servers(
        self, sandbox_id: str, mcp: Mapping[str, Mapping[str, Any]], options: McpOptions
    ) -> BroughtUp:
        """Give a running sandbox other MCP servers. Raises: NotFound, Conflict, InvalidRequest, ServerStartFailed."""

        async def replace_them() -> BroughtUp:
            live = self._directory.find(sandbox_id)
            if live is None:
                raise sandbox_not_found(sandbox_id)
            if live.address is None:
                raise Conflict(f"Sandbox {sandbox_id} is paused: connect to it first.")
            try:
                live, servers = await self._setup.replace_servers(
                    live, live.address, mcp, options, caller_token=None, wait_s=_SERVERS_WAIT_S
                )
            except SandgateError as error:
                raise engine_problem(error, f"The MCP servers of sandbox {sandbox_id} could not be replaced") from error
            self._record_servers(sandbox_id, servers)
            self._learn_soon(live)
            return BroughtUp(live, servers)

        return await self._moves.run(sandbox_id, replace_them, name="set servers of")

    async def answers(self, sandbox_id: str) -> bool:
        """Whether the sandbox's agent answers within 5 s."""
        live = self._directory.find(sandbox_id)
        if live is None or live.address is None:
            return False
        return await self._agents.is_healthy(live.address)

    async def snapshot(self, sandbox_id: str, image: str) -> None:
        """Keep the files of a sandbox's workspace as an image.

        Raises: NotFound, EngineAway, OutOfSpace, SandboxFailed.
        """

        async def save() -> None:
            live = self._directory.find(sandbox_id)
            if live is None:
                raise sandbox_not_found(sandbox_id)
            try:
                await self._engine.snapshot(live.pod.id, _WORKSPACE, image)
            except Exception as error:
                raise engine_problem(error, f"Sandbox {sandbox_id} could not be saved") from error

        await self._moves.run(sandbox_id, save, name="snapshot")

    async def set_network(self, sandbox_id: str, rules: NetworkRules) -> None:
        """Replace a sandbox's rules and put them in force. Raises: NotFound, EngineAway, SandboxFailed."""

        async def put_in_force() -> None:
            live = self._directory.find(sandbox_id)
            if live is None:
                raise sandbox_not_found(sandbox_id)
            # The row first: what it says is put in force again by whoever starts next.
            await self._store.set_network(sandbox_id, rules)
            self._directory.change(sandbox_id, network=rules)
            try:
                self._unenforced.add(sandbox_id)
                await self._engine.set_network(live.pod.id, rules.egress)
                self._unenforced.discard(sandbox_id)
            except Exception as error:
                raise engine_problem(
                    error, f"The network rules of sandbox {sandbox_id} are not in force yet"
                ) from error

        await self._moves.run(sandbox_id, put_in_force, name="set network of")

    async def _enforce_again(self, sandbox_id: str) -> None:
        """Put rules in force that a caller was told are not in force yet."""

        async def enforce() -> None:
            live = self._directory.find(sandbox_id)
            if live is not None and live.sandbox.pause_mode is PauseMode.FILESYSTEM:
                return  # it gets its rules when it boots
            if live is not None:
                await self._engine.set_network(live.pod.id, live.sandbox.network.egress)
            self._unenforced.discard(sandbox_id)

        await self._as_move(sandbox_id, enforce, name="enforce rules of")

    # -- stopping ---------------------------------------------------------------------------------------------------

    def stop_soon(self, sandbox_id: str) -> None:
        """Bring down a sandbox whose target is stopped, in the background. Nothing is routed to it from now on."""
        self._directory.remove(sandbox_id)
        if sandbox_id not in self._stopping:
            self._stopping.add(sandbox_id)
            self._journal.record(sandbox_id, "Told to stop.")
            self._spawn(self._tear_down(sandbox_id), f"stop {sandbox_id}")

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
                await self._remove_unused_images()
        self._stopping.discard(sandbox_id)
        self._moves.forget(sandbox_id)
        self._journal.record(sandbox_id, "Stopped.")
        _log.info("sandbox_stopped", sandbox_id=sandbox_id)

    async def _remove_unused_images(self) -> None:
        """What forks were made from goes with the last of them. An image that something still needs stays for now."""
        for image in await self._store.unused_fork_images():
            if await self._engine.remove_image(image):
                await self._store.forget_fork_image(image)

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
                    self._starter.engine_prepared()
                    prepare_at = loop.time() + _PREPARE_INTERVAL_S
            except EngineError as error:
                _log.warning("engine_unavailable", reason=str(error))
            except Exception:  # noqa: BLE001 - a full disk or a database that is away for a while must not end the sweep
                _log.exception("sweep_failed")
            await asyncio.sleep(self._sweep_interval_s if self._starter.is_prepared else 1.0)

    async def _sweep(self) -> None:
        """Hold rows against pods: adopt, fail what died, finish what was begun, remove what nobody wants."""
        alive = await self._store.alive()
        observed = await self._engine.observe()
        recorded = await self._store.pods()
        pod_of = {pod.sandbox_id: pod for pod in recorded.values() if pod.sandbox_id is not None}
        for sandbox in alive:
            if self._moves.is_moving(sandbox.id):
                continue
            pod = pod_of.get(sandbox.id)
            seen = observed.get(pod.id) if pod is not None else None
            if pod is None or not _is_as_recorded(sandbox, seen):
                self._spawn(self._repair_soon(sandbox.id), f"repair {sandbox.id}")
            elif self._directory.find(sandbox.id) is None:
                await self._adopt_seen(sandbox.id, pod, seen)
        for pod_id in observed.keys() - recorded.keys():
            if VOLUME_LABEL in observed[pod_id].labels:
                continue  # the pod of a volume, which its own room looks after
            _log.warning("pod_without_row_removed", pod_id=pod_id)
            try:
                await self._engine.stop(pod_id)
            except EngineUnavailable:
                raise
            except EngineError as error:
                _log.warning("pod_not_removed", pod_id=pod_id, reason=str(error))
        await self._warm_pool.sweep(recorded, observed)
        for sandbox_id in await self._store.to_stop():
            self.stop_soon(sandbox_id)
        for sandbox_id in self._unenforced:
            self._spawn(self._enforce_again(sandbox_id), f"enforce rules of {sandbox_id}")
        await self._remove_unused_images()

    async def _adopt_seen(self, sandbox_id: str, pod: PodRecord, seen: Pod | None) -> None:
        """Take up a sandbox whose pod was seen as its row says; as a move, because it may be told to stop meanwhile."""

        async def adopt() -> None:
            sandbox = await self._store.find(sandbox_id)
            if sandbox is not None and _is_as_recorded(sandbox, seen):
                await self._adopt(sandbox, pod, seen)
                _log.info("sandbox_adopted", sandbox_id=sandbox_id)

        await self._as_move(sandbox_id, adopt, name="adopt")

    async def _repair_soon(self, sandbox_id: str) -> None:
        await self._as_move(sandbox_id, lambda: self._repair(sandbox_id), name="repair")

    async def _as_move(self, sandbox_id: str, work: Callable[[], Coroutine[Any, Any, None]], *, name: str) -> None:
        """Do what nobody waits for. One sandbox's trouble keeps the sweep from no other; the next one tries again."""
        try:
            await self._moves.run(sandbox_id, work, name=name)
        except Conflict:
            pass  # it is being stopped, which settles it too
        except EngineError as error:
            _log.warning("sandbox_not_swept", sandbox_id=sandbox_id, doing=name, reason=str(error))

    async def _repair(self, sandbox_id: str) -> None:
        """Bring a sandbox whose pod is not as its row says to where it should be, or give it up.

        Looks again first: what the sweep saw may have been the middle of a move.
        """
        sandbox = await self._store.find(sandbox_id)
        pod = await self._store.pod_of(sandbox_id)
        if sandbox is None:
            return
        seen = (await self._engine.observe()).get(pod.id) if pod is not None else None
        if pod is not None and _is_as_recorded(sandbox, seen):
            await self._adopt(sandbox, pod, seen)
            return
        is_whole = seen is not None and all(container.state != "absent" for container in seen.containers)
        if sandbox.status is Status.PAUSED and is_whole:
            # Nobody waits for a resume that ended without a word, because the database was away.
            await self._store.take_back_resume(sandbox_id)
            sandbox = replace(sandbox, target=Status.PAUSED)
        if sandbox.target is Status.PAUSED and is_whole and seen is not None:
            # Also where the machine was started anew: frozen processes are gone then, and the files are still there.
            has_memory = all(container.state in ("running", "paused") for container in seen.own)
            mode = (sandbox.pause_mode or PauseMode.MEMORY) if has_memory else PauseMode.FILESYSTEM
            _log.info("pause_finished", sandbox_id=sandbox_id, mode=mode)
            await self._finish_pause(sandbox_id, mode)
            return
        failure = death(sandbox_id, seen)
        self._journal.record(sandbox_id, failure, level=Level.ERROR)
        _log.warning("sandbox_died", sandbox_id=sandbox_id, reason=failure)
        if await self._store.ask_to_stop(sandbox_id, failure=failure):
            self.stop_soon(sandbox_id)

    # -- tasks ------------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        guarded = _guarded(work, name)
        task = self._tasks.create_task(guarded, name=name)
        # Of a task that was cancelled before its first step nothing has run; elsewhere this does nothing.
        task.add_done_callback(lambda _: work.close())
        return task


async def _guarded(work: Coroutine[Any, Any, None], name: str) -> None:
    """One sandbox's trouble must not end the work on all others, as an exception in a task group would."""
    try:
        await work
    except Exception:  # noqa: BLE001 - logged here, repaired by the next sweep
        _log.exception("task_failed", task=name)


def _is_as_recorded(sandbox: Sandbox, seen: Pod | None) -> bool:
    """Whether a pod is in the state that its sandbox's row tells, with nothing left to do."""
    if seen is None or sandbox.status is not sandbox.target:
        return False
    if sandbox.status is Status.RUNNING:
        return seen.is_running
    frozen = sandbox.pause_mode is PauseMode.MEMORY
    return all(container.state == ("paused" if frozen else "exited") for container in seen.own)


def _exception_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
