"""An engine without containers, for the parts that only need pods to come, go and fail. Keeps the whole contract.

A pod's address is whatever `address_of` says, so real servers on loopback addresses can stand in for what runs inside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from app.engines.in_memory_builds import InMemoryBuilds
from app.engines.in_memory_jobs import InMemoryJobs
from app.engines.in_memory_runs import InMemoryRuns
from app.engines.interface import (
    ContainerSpec,
    ContainerState,
    ContainerStatus,
    EgressRules,
    EngineInfo,
    Pod,
    PodSpec,
)
from app.engines.runs import RunOutcome, RunSpec
from app.errors import EngineError, EngineUnavailable, ImageMissing, PodGone
from app.ids_and_time import rfc3339, utc_now

_PINNED = "@sha256:" + "0" * 64
"""Behind the name of an image to pin it: here no name ever comes to mean another image."""

_ON_THE_WAY_UP: Mapping[ContainerState, tuple[ContainerState, ...]] = {
    "absent": ("created", "running"),
    "created": ("running",),
    "exited": ("running",),
    "paused": ("running",),
    "running": (),
}


@dataclass(slots=True)
class _PodInMemory:
    spec: PodSpec
    statuses: dict[str, ContainerStatus]
    """By role, in the order of the spec."""
    attached: dict[str, ContainerSpec] = field(default_factory=dict)
    """By role."""
    output: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """By role, lines with their moments."""

    @property
    def containers(self) -> tuple[ContainerSpec, ...]:
        return (*self.spec.containers, *self.attached.values())


class InMemoryEngine:
    def __init__(
        self,
        images: Mapping[str, Mapping[str, bytes]],
        *,
        address_of: Callable[[PodSpec], str] = lambda spec: "127.0.0.1",
    ) -> None:
        """`images` maps an image to its files by path."""
        self.is_away = False
        """While set, every verb raises EngineUnavailable."""
        self.refused_roles: dict[str, str] = {}
        """Containers that cannot be attached, and why."""
        self._images: dict[str, Mapping[str, bytes]] = dict(images)
        self.builds = InMemoryBuilds(self._images, self._answer)
        self.jobs = InMemoryJobs(self._images, self._answer)
        self.runs = InMemoryRuns()
        self._address_of = address_of
        self._pods: dict[str, _PodInMemory] = {}
        self._volumes: set[str] = set()

    async def check(self) -> EngineInfo:
        await self._answer("ask for the engine's version")
        return EngineInfo(name="in memory", version="1")

    async def prepare_networks(self) -> None:
        await self._answer("prepare the networks")

    async def prepare(self) -> None:
        await self._answer("prepare")

    async def has_image(self, image: str) -> bool:
        await self._answer(f"look for image {image}")
        return image in self._images

    async def pin_image(self, image: str) -> str | None:
        await self._answer(f"look for image {image}")
        name = image.removesuffix(_PINNED)
        return name + _PINNED if name in self._images else None

    async def read_file(self, image: str, path: str) -> bytes:
        await self._answer(f"read {path} from image {image}")
        if image not in self._images:
            raise ImageMissing(image)
        if path not in self._images[image]:
            raise EngineError(f"Image {image} has no file {path}.")
        return self._images[image][path]

    async def start(self, spec: PodSpec) -> Pod:
        await self._answer(f"start pod {spec.pod_id}")
        pod = self._pods.get(spec.pod_id)
        if pod is None or pod.statuses[spec.containers[0].role].state in ("absent", "exited"):
            absent = {c.role: ContainerStatus(role=c.role, state="absent") for c in spec.containers}
            pod = self._pods[spec.pod_id] = _PodInMemory(spec, absent)
        for container in spec.containers:
            if container.image not in self._images:
                raise ImageMissing(container.image)
            if gone := [
                mount.volume for mount in container.mounts if not mount.shared and mount.volume not in self._volumes
            ]:
                raise EngineError(f"Volume {gone[0]} is not on the engine.")
            for state in _ON_THE_WAY_UP[pod.statuses[container.role].state]:
                await self._answer(f"start container {container.role}")
                if self._pods.get(spec.pod_id) is not pod:
                    raise EngineError(f"Pod {spec.pod_id} was stopped while it was being started.")
                pod.statuses[container.role] = ContainerStatus(role=container.role, state=state)
        return self._seen(pod)

    async def attach(self, pod_id: str, containers: Sequence[ContainerSpec]) -> Mapping[str, str]:
        await self._answer(f"look at pod {pod_id}")
        pod = self._pods.get(pod_id)
        if pod is None:
            raise PodGone(pod_id)
        refused = {}
        for container in containers:
            await self._answer(f"start container {container.role}")
            if self._pods.get(pod_id) is not pod:
                raise EngineError(f"Pod {pod_id} was stopped while it was being started.")
            if container.role in self.refused_roles:
                refused[container.role] = self.refused_roles[container.role]
                continue
            if container.image.removesuffix(_PINNED) not in self._images:
                refused[container.role] = f"image {container.image} is not on the engine"
                continue
            pod.attached[container.role] = container
            pod.statuses[container.role] = ContainerStatus(role=container.role, state="running", is_attached=True)
        return refused

    async def detach(self, pod_id: str, roles: Iterable[str]) -> None:
        await self._answer(f"look at pod {pod_id}")
        if (pod := self._pods.get(pod_id)) is not None:
            for role in pod.attached.keys() & set(roles):
                del pod.attached[role], pod.statuses[role]

    async def run(self, pod_id: str, spec: RunSpec) -> RunOutcome:
        await self._answer(f"run {spec.image} beside pod {pod_id}")
        pod = self._pods.get(pod_id)
        if pod is None or next(iter(pod.statuses.values())).state != "running":
            raise PodGone(pod_id)
        if spec.image.removesuffix(_PINNED) not in self._images:
            raise ImageMissing(spec.image)
        return await self.runs.run(pod_id, spec)

    async def remove_lost(self) -> None:
        await self._answer("remove what nobody waits for")

    async def stop(self, pod_id: str) -> None:
        await self._answer(f"stop pod {pod_id}")
        self.runs.end(pod_id)
        self._pods.pop(pod_id, None)

    async def pause(self, pod_id: str) -> None:
        self.runs.end(pod_id)
        await self._move(pod_id, {"running": "paused"})

    async def halt(self, pod_id: str) -> None:
        self.runs.end(pod_id)
        await self._move(pod_id, {"running": "exited", "paused": "exited"})

    async def resume(self, pod_id: str) -> Pod:
        return self._seen(await self._move(pod_id, {"paused": "running", "exited": "running", "created": "running"}))

    async def set_boot_id(self, pod_id: str, role: str, boot_id: str) -> None:
        pod = await self._move(pod_id, {})
        if pod.statuses[role].state != "running":
            raise EngineError(f"Container {role} of pod {pod_id} does not run.")

    async def snapshot(self, pod_id: str, role: str, image: str) -> None:
        pod = await self._move(pod_id, {})
        spec = next(container for container in pod.spec.containers if container.role == role)
        self._images[image] = self._images[spec.image]

    async def remove_image(self, image: str) -> bool:
        await self._answer(f"remove image {image}")
        if any(container.image == image for pod in self._pods.values() for container in pod.containers):
            return False
        self._images.pop(image, None)
        return True

    async def _move(self, pod_id: str, states: Mapping[ContainerState, ContainerState]) -> _PodInMemory:
        """Take every container of the pod from a state that is a key to its value."""
        await self._answer(f"find pod {pod_id}")
        pod = self._pods.get(pod_id)
        if pod is None or any(status.state == "absent" for status in pod.statuses.values()):
            raise PodGone(pod_id)
        for role, status in pod.statuses.items():
            if status.state in states:
                pod.statuses[role] = replace(status, state=states[status.state], exit_code=None)
        return pod

    async def set_network(self, pod_id: str, rules: EgressRules) -> None:
        await self._answer(f"set the network rules of pod {pod_id}")
        pod = self._pods.get(pod_id)
        if pod is None:
            raise PodGone(pod_id)
        if pod.spec.egress:
            pod.spec = replace(pod.spec, egress_rules=rules)
        elif not rules.is_closed:
            raise EngineError(f"Pod {pod_id} was made without a way out, and none can be opened later.")

    async def observe(self) -> Mapping[str, Pod]:
        await self._answer("list pods")
        # As with a real engine there is nothing to see of a pod before its first container is made.
        return {
            pod_id: self._seen(pod)
            for pod_id, pod in self._pods.items()
            if any(status.state != "absent" for status in pod.statuses.values())
        }

    async def logs(self, pod_id: str, role: str, *, tail: int, timestamps: bool = False) -> str:
        await self._answer(f"read the log of {role}")
        pod = self._pods.get(pod_id)
        lines = pod.output.get(role, []) if pod else []
        return "".join(f"{f'{moment} ' if timestamps else ''}{line}\n" for moment, line in lines[-tail:])

    async def create_volume(self, name: str) -> None:
        await self._answer(f"create volume {name}")
        self._volumes.add(name)

    async def remove_volume(self, name: str) -> bool:
        await self._answer(f"remove volume {name}")
        containers = [container for pod in self._pods.values() for container in pod.containers]
        if any(mount.volume == name for container in containers for mount in container.mounts):
            return False
        self._volumes.discard(name)
        return True

    async def volumes(self) -> frozenset[str]:
        await self._answer("list volumes")
        return frozenset(self._volumes)

    async def remove_installation(self, *, with_volumes: bool = False) -> tuple[str, ...]:
        await self._answer("remove the installation")
        for pod_id in self._pods:
            self.runs.end(pod_id)
        self._pods.clear()
        if with_volumes:
            self._volumes.clear()
        return ()

    async def aclose(self) -> None:
        return

    def exit_container(self, pod_id: str, role: str, *, exit_code: int) -> None:
        """Let the container's program end by itself."""
        pod = self._pods[pod_id]
        pod.statuses[role] = replace(pod.statuses[role], state="exited", exit_code=exit_code)

    def remove_container(self, pod_id: str, role: str) -> None:
        """Take the container away, as somebody with access to the engine may."""
        pod = self._pods[pod_id]
        if pod.attached.pop(role, None) is not None:
            del pod.statuses[role]
        else:
            pod.statuses[role] = ContainerStatus(role=role, state="absent")

    def write_log(self, pod_id: str, role: str, line: str) -> None:
        self._pods[pod_id].output.setdefault(role, []).append((rfc3339(utc_now()), line))

    def spec_of(self, pod_id: str) -> PodSpec:
        """What the pod was started with, and the network rules it has now."""
        return self._pods[pod_id].spec

    def attached_to(self, pod_id: str) -> Mapping[str, ContainerSpec]:
        """By role."""
        return self._pods[pod_id].attached

    async def _answer(self, doing: str) -> None:
        """Take a turn of the event loop as a real engine would, so that verbs interleave and can be cancelled."""
        await asyncio.sleep(0)
        if self.is_away:
            raise EngineUnavailable(f"Could not {doing}: the engine does not answer.")

    def _seen(self, pod: _PodInMemory) -> Pod:
        statuses = tuple(pod.statuses.values())
        return Pod(
            pod_id=pod.spec.pod_id,
            labels=dict(pod.spec.labels),
            address=self._address_of(pod.spec) if statuses[0].state == "running" else None,
            containers=statuses,
        )
