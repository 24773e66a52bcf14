"""A small pod for each volume whose content is being read or written: the agent, the volume, and no network out.

Such a pod has no row: everything it is made of is known from the volume, and one that is not in use is stopped. Those
of a process that is gone are found by their label and stopped at the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import httpx
import structlog

from app.engines.interface import ContainerSpec, Engine, Limits, Pod, PodSpec, VolumeMount
from app.errors import EngineError, EngineNotPrepared
from app.ids_and_time import new_pod_id, new_token
from app.sandboxes.planning import VOLUME_LABEL, control_environment
from app.sandboxes.pod_clients import AGENT_PORT
from app.volumes.failures import engine_errors_mapped

_MOUNTED_AT = "/volume"
_LIMITS = Limits(memory_mib=256, cpus=2.0, pids=128)
_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SYS_CHROOT")
_START_DEADLINE_S = 60.0
_LISTEN_DEADLINE_S = 15.0
_PREPARE_WAIT_S = 20.0
_PREPARE_POLL_S = 0.1
_LOG_TAIL = 20
_LAST_STOP_S = 5.0
_POLL_S = 0.02

_log = structlog.get_logger()


@dataclass(slots=True)
class VolumePod:
    volume_id: str
    pod_id: str
    token: str = field(repr=False)
    """What the agent takes as X-Control-Token."""
    address: str = ""
    users: int = 0
    """Requests that are using it now."""
    idle_since: float = 0.0

    @property
    def url(self) -> str:
        return f"http://{self.address}:{AGENT_PORT}"


class VolumePods:
    def __init__(
        self, *, engine: Engine, http: httpx.AsyncClient, image: str, idle_s: float = 120.0, sweep_s: float = 15.0
    ) -> None:
        """`image` is the workspace's. A pod that nobody used for `idle_s` is stopped, within `sweep_s` more."""
        self._engine = engine
        self._http = http
        self._image = image
        self._idle_s = idle_s
        self._sweep_s = sweep_s
        self._pods: dict[str, VolumePod] = {}
        """By volume id."""
        self._starting: set[str] = set()
        self._failed: set[str] = set()
        """Pods that did not come up, and of which something may be left."""
        self._locks: dict[str, asyncio.Lock] = {}

    async def run(self) -> None:
        """Stop what is not in use, until cancelled; then all of them."""
        try:
            while True:
                try:
                    await self._sweep()
                except EngineError as error:
                    _log.warning("volume_pods_not_swept", reason=str(error))
                except Exception:  # noqa: BLE001 - whatever went wrong, the next round tries again
                    _log.exception("volume_pods_not_swept")
                await asyncio.sleep(self._sweep_s)
        finally:
            with suppress(TimeoutError, EngineError):
                async with asyncio.timeout(_LAST_STOP_S):
                    for pod in list(self._pods.values()):
                        await self._engine.stop(pod.pod_id)

    @asynccontextmanager
    async def serving(self, volume_id: str) -> AsyncIterator[VolumePod]:
        """The volume's pod, started if need be. It stays while entered. Raises as `engine_errors_mapped`."""
        async with self._lock(volume_id):
            pod = self._pods.get(volume_id)
            if pod is None:
                with engine_errors_mapped(f"Volume {volume_id} cannot be reached"):
                    pod = await self._start(volume_id)
                self._pods[volume_id] = pod
            pod.users += 1
        try:
            yield pod
        finally:
            pod.users -= 1
            pod.idle_since = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def closed(self, volume_id: str) -> AsyncIterator[None]:
        """While entered the volume has no pod. Raises: EngineError."""
        async with self._lock(volume_id):
            await self._stop(self._pods.get(volume_id))
            yield
        self._locks.pop(volume_id, None)

    async def replace(self, pod: VolumePod) -> None:
        """Stop a pod that does not answer; the next use starts another one."""
        async with self._lock(pod.volume_id):
            if self._pods.get(pod.volume_id) is pod:
                _log.warning("volume_pod_lost", volume_id=pod.volume_id)
                with engine_errors_mapped(f"Volume {pod.volume_id} cannot be reached"):
                    await self._stop(pod)

    async def _start(self, volume_id: str) -> VolumePod:
        pod = VolumePod(volume_id, new_pod_id(), new_token())
        container = ContainerSpec(
            role="volume",
            image=self._image,
            limits=_LIMITS,
            command=("--volume", _MOUNTED_AT),
            env=control_environment(pod.token),
            mounts=(VolumeMount(volume=volume_id, path=_MOUNTED_AT),),
            capabilities=_CAPABILITIES,
        )
        spec = PodSpec(pod_id=pod.pod_id, containers=(container,), egress=False, labels={VOLUME_LABEL: volume_id})
        self._starting.add(pod.pod_id)
        try:
            await self._bring_up(pod, spec)
        except BaseException:
            # Also where there is no container of it yet: it has an address, of which there are not that many.
            self._failed.add(pod.pod_id)
            await self._remove_failed()
            raise
        finally:
            self._starting.discard(pod.pod_id)  # from here on the sweep takes it for a leftover, unless it is in use
        _log.info("volume_pod_started", volume_id=volume_id, pod_id=pod.pod_id)
        return pod

    async def _bring_up(self, pod: VolumePod, spec: PodSpec) -> None:
        try:
            async with asyncio.timeout(_START_DEADLINE_S):
                started = await self._started(spec)
                if started.address is None:
                    raise EngineError(f"pod {pod.pod_id} was started and has no address.")
                pod.address = started.address
            await self._until_listening(pod)
        except TimeoutError:
            output = await self._engine.logs(pod.pod_id, spec.containers[0].role, tail=_LOG_TAIL)
            raise EngineError(f"its pod did not come up. Last output: {output or 'none'}") from None

    async def _started(self, spec: PodSpec) -> Pod:
        """Soon after the start of this process the engine may still be being prepared, by the reconciler."""
        give_up_at = asyncio.get_running_loop().time() + _PREPARE_WAIT_S
        while True:
            try:
                return await self._engine.start(spec)
            except EngineNotPrepared:
                if asyncio.get_running_loop().time() > give_up_at:
                    raise
                await asyncio.sleep(_PREPARE_POLL_S)

    async def _until_listening(self, pod: VolumePod) -> None:
        """Raises: TimeoutError."""
        async with asyncio.timeout(_LISTEN_DEADLINE_S):
            while True:
                try:
                    await self._http.get(f"{pod.url}/health", timeout=1.0)
                except httpx.HTTPError:
                    await asyncio.sleep(_POLL_S)
                else:
                    return

    async def _stop(self, pod: VolumePod | None) -> None:
        if pod is not None:
            self._pods.pop(pod.volume_id, None)
            await self._engine.stop(pod.pod_id)

    async def _sweep(self) -> None:
        idle_since = asyncio.get_running_loop().time() - self._idle_s
        for pod in list(self._pods.values()):
            async with self._lock(pod.volume_id):
                if self._pods.get(pod.volume_id) is pod and not pod.users and pod.idle_since <= idle_since:
                    await self._stop(pod)
        await self._remove_failed()
        observed = await self._engine.observe()
        known = {pod.pod_id for pod in self._pods.values()} | self._starting
        for pod_id, seen in observed.items():
            if VOLUME_LABEL in seen.labels and pod_id not in known and await self._removed(pod_id):
                _log.info("volume_pod_removed", volume_id=seen.labels[VOLUME_LABEL])

    async def _remove_failed(self) -> None:
        for pod_id in list(self._failed):
            if await self._removed(pod_id):
                self._failed.discard(pod_id)

    async def _removed(self, pod_id: str) -> bool:
        """Remove a pod that nobody uses. One that the engine does not let go must not keep the others."""
        try:
            await self._engine.stop(pod_id)
        except EngineError as error:
            _log.warning("volume_pod_not_removed", pod_id=pod_id, reason=str(error))
            return False
        return True

    def _lock(self, volume_id: str) -> asyncio.Lock:
        return self._locks.setdefault(volume_id, asyncio.Lock())
