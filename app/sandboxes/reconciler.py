"""Holds rows against pods, over and over, and has what differs put right.

What has to be done follows from the rows alone, so a control plane that was killed anywhere goes on after its next
start: rows that were starting are told to stop, rows that were running or paused are adopted if their pod still is,
what was being paused is paused, and pods that no row wants are removed. A pod's row is written before the engine hears
of it, so no pod can be without one.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

import structlog

from app.engines.interface import Engine, Pod
from app.errors import EngineError, EngineOutOfSpace, EngineUnavailable
from app.packages import PackageStore
from app.sandboxes.background import Background
from app.sandboxes.directory import Directory
from app.sandboxes.expiry import Expiry
from app.sandboxes.failures import death
from app.sandboxes.journal import Journal, Level
from app.sandboxes.models import PauseMode, PodRecord, Sandbox, Status
from app.sandboxes.planning import VOLUME_LABEL
from app.sandboxes.store import Store
from app.sandboxes.transitions import Transitions
from app.sandboxes.warm_pool import WarmPool

_ADOPT_WAIT_S = 5.0

_log = structlog.get_logger()


class Reconciler:
    def __init__(
        self,
        *,
        store: Store,
        engine: Engine,
        transitions: Transitions,
        expiry: Expiry,
        warm_pool: WarmPool,
        packages: PackageStore,
        directory: Directory,
        journal: Journal,
        background: Background,
        sweep_interval_s: float = 15.0,
        prepare_interval_s: float = 300.0,
    ) -> None:
        self._store = store
        self._engine = engine
        self._transitions = transitions
        self._expiry = expiry
        self._warm_pool = warm_pool
        self._packages = packages
        self._directory = directory
        self._journal = journal
        self._background = background
        self._sweep_interval_s = sweep_interval_s
        self._prepare_interval_s = prepare_interval_s
        self._swept = asyncio.Event()
        """The first sweep is over, well or not."""
        self._removing: set[str] = set()
        """Pods without a row."""

    async def run(self, ready: asyncio.Event) -> None:
        """Work until cancelled; pods are left as they are at the end.

        `ready` is set once sandboxes may be moved and what runs is adopted, so that nobody takes a running sandbox
        for one that is gone; with an engine that does not answer, without that.
        """
        # Before the first move of this process: what is moving now was moved by one that is gone.
        await self._store.abandon_moves()
        self._directory.expect(await self._store.alive_ids())
        async with self._background:
            spawn = self._background.spawn
            spawn(self._adopt_and_sweep(), "sweep")
            spawn(self._keep_prepared(), "prepare")
            spawn(self._expiry.run(), "expire")
            spawn(self._transitions.make_tools_searchable(), "make remembered tools searchable")
            with suppress(TimeoutError):
                async with asyncio.timeout(_ADOPT_WAIT_S):
                    await self._swept.wait()
            spawn(self._warm_pool.keep_filled(), "keep pods warm")
            ready.set()

    # -- adopting and sweeping --------------------------------------------------------------------------------------

    async def _adopt_and_sweep(self) -> None:
        while True:
            try:
                await self._sweep()
            except EngineError as error:
                _log.warning("engine_unavailable", reason=str(error))
            except Exception:  # noqa: BLE001 - a full disk or a database that is away for a while must not end the sweep
                _log.exception("sweep_failed")
            finally:
                self._swept.set()
            await asyncio.sleep(self._retry_s)

    async def _keep_prepared(self) -> None:
        """Prepare the engine again and again: whoever flushes the host's packet filter takes the guard's rules along.

        Apart from the sweep, so that nothing that cannot be swept keeps sandboxes from being started.
        """
        starter = self._transitions.starter
        while True:
            is_done = False
            try:
                await self._engine.prepare()
                is_done = True
            except (EngineUnavailable, EngineOutOfSpace) as error:
                # Nothing starts on such an engine, and whoever tries is told the same.
                _log.warning("engine_unavailable", reason=str(error))
            except EngineError as error:
                starter.engine_unprepared()
                _log.error("guard_not_in_place", reason=str(error))
            except Exception:  # noqa: BLE001 - as above
                starter.engine_unprepared()
                _log.exception("guard_not_in_place")
            if is_done:
                starter.engine_prepared()
                await self._remove_lost()
            await asyncio.sleep(self._prepare_interval_s if is_done else self._retry_s)

    async def _remove_lost(self) -> None:
        try:
            await self._engine.remove_lost()
        except EngineError as error:
            _log.warning("lost_containers_not_removed", reason=str(error))
        except Exception:  # noqa: BLE001 - as above
            _log.exception("lost_containers_not_removed")

    @property
    def _retry_s(self) -> float:
        return self._sweep_interval_s if self._transitions.starter.is_prepared else 1.0

    async def _sweep(self) -> None:
        """Hold rows against pods: adopt, fail what died, finish what was begun, remove what nobody wants."""
        alive = await self._store.alive()
        observed = await self._engine.observe()
        recorded = await self._store.pods()
        if not observed.keys() & recorded.keys():
            self._packages.forget()  # nothing of this home holds the store, so others may take out of it what they like
        pod_of = {pod.sandbox_id: pod for pod in recorded.values() if pod.sandbox_id is not None}
        for sandbox in alive:
            if self._transitions.is_moving(sandbox.id):
                continue
            pod = pod_of.get(sandbox.id)
            seen = observed.get(pod.id) if pod is not None else None
            if pod is None or not _is_as_recorded(sandbox, seen):
                self._background.spawn(self._repair_soon(sandbox.id), f"repair {sandbox.id}")
            elif self._directory.find(sandbox.id) is None:
                await self._adopt_seen(sandbox.id, pod, seen)
        for pod_id in observed.keys() - recorded.keys():
            if VOLUME_LABEL in observed[pod_id].labels:
                continue  # the pod of a volume, which its own room looks after
            if pod_id not in self._removing:
                self._removing.add(pod_id)
                self._background.spawn(self._remove(pod_id), f"remove pod {pod_id}")
        await self._warm_pool.sweep(recorded, observed)
        for sandbox_id in await self._store.to_stop():
            self._transitions.stop_soon(sandbox_id)
        for sandbox_id in self._transitions.unenforced:
            self._background.spawn(self._transitions.enforce_again(sandbox_id), f"enforce rules of {sandbox_id}")
        await self._transitions.remove_unused_images()

    async def _remove(self, pod_id: str) -> None:
        """A pod that no row wants; if it does not go, the next sweep tries again."""
        _log.warning("pod_without_row_removed", pod_id=pod_id)
        try:
            await self._engine.stop(pod_id)
        except EngineError as error:
            _log.warning("pod_not_removed", pod_id=pod_id, reason=str(error))
        finally:
            self._removing.discard(pod_id)

    async def _adopt_seen(self, sandbox_id: str, pod: PodRecord, seen: Pod | None) -> None:
        """Take up a sandbox whose pod was seen as its row says; as a move, because it may be told to stop meanwhile."""

        async def adopt() -> None:
            sandbox = await self._store.find(sandbox_id)
            if sandbox is not None and _is_as_recorded(sandbox, seen):
                await self._transitions.adopt(sandbox, pod, seen)
                _log.info("sandbox_adopted", sandbox_id=sandbox_id)

        await self._transitions.as_move(sandbox_id, adopt, name="adopt")

    async def _repair_soon(self, sandbox_id: str) -> None:
        await self._transitions.as_move(sandbox_id, lambda: self._repair(sandbox_id), name="repair")

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
            await self._transitions.adopt(sandbox, pod, seen)
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
            await self._transitions.finish_pause(sandbox_id, mode)
            return
        failure = death(sandbox_id, seen)
        self._journal.record(sandbox_id, failure, level=Level.ERROR)
        _log.warning("sandbox_died", sandbox_id=sandbox_id, reason=failure)
        if await self._store.ask_to_stop(sandbox_id, failure=failure):
            self._transitions.stop_soon(sandbox_id)


def _is_as_recorded(sandbox: Sandbox, seen: Pod | None) -> bool:
    """Whether a pod is in the state that its sandbox's row tells, with nothing left to do."""
    if seen is None or sandbox.status is not sandbox.target:
        return False
    if sandbox.status is Status.RUNNING:
        return seen.is_running
    frozen = sandbox.pause_mode is PauseMode.MEMORY
    return all(container.state == ("paused" if frozen else "exited") for container in seen.own)
