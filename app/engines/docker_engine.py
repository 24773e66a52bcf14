"""Pods on Docker Engine 20.10 and later, with nothing but the engine's API.

Verbs for different pods run side by side. For one pod, a `start` waits for an earlier one, and a `stop` ends it; both
wait for what a cancelled start still has in its threads, so nothing is made behind their back.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import docker
from docker.errors import APIError, ImageNotFound, NotFound

from app.concurrency import all_of
from app.engines import docker_pods
from app.engines.docker_builds import TRANSFER_S, DockerBuilds
from app.engines.docker_client import DockerClient
from app.engines.docker_helpers import HelperContainers, remove_container, remove_image
from app.engines.docker_jobs import DockerJobs
from app.engines.docker_networks import DockerNetworks
from app.engines.docker_pods import Attachment, PodFrame, PodNetwork
from app.engines.docker_runs import DockerRuns
from app.engines.docker_volumes import DockerVolumes, check_volume, remove_volume
from app.engines.interface import ContainerSpec, ContainerState, EgressRules, EngineInfo, Pod, PodSpec
from app.engines.network_guard import AllowedTarget
from app.engines.pod_start import PodStart
from app.engines.runs import RunOutcome, RunSpec
from app.errors import EngineError, EngineOutOfSpace, EngineUnavailable, ImageMissing, PodGone

_TIMEOUT_S = 45
"""The SDKs wait 60 s for a create: an engine that says nothing is told of before they give up."""
_CHECK_TIMEOUT_S = 5
_HALT_GRACE_S = 2
_NETWORK_RETRY_S = 0.5
_SWEEPS = 10
"""Rounds of a stop. Two are the rule; more while the engine still carries out what a killed control plane began."""


class DockerEngine:
    def __init__(
        self,
        installation: str,
        *,
        guard_image: str,
        egress_allow: Sequence[str] = (),
        runtime: str | None = None,
        base_url: str | None = None,
        max_workers: int = 16,
        timeout_s: int = _TIMEOUT_S,
    ) -> None:
        """`installation` keeps the pods of several control planes on one engine apart: `[a-z0-9-]`, at most 32.

        `guard_image` holds `/bin/sh` and `nft`. `egress_allow` holds `<IPv4 address or network>:<port>` that pods may
        reach in spite of the guard. `base_url` None means `DOCKER_HOST` or the default socket. `timeout_s` bounds each
        wait for the engine. Raises: ValueError.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", installation):
            raise ValueError(f"installation {installation!r} must be 1 to 32 of a-z, 0-9 and -")
        self._installation = installation
        self._runtime = runtime
        self._client = DockerClient(base_url=base_url, max_workers=max_workers, timeout_s=timeout_s)
        self._helpers = HelperContainers(self._client, installation)
        self._guard_image = guard_image
        self._networks = DockerNetworks(
            self._client,
            self._helpers,
            installation,
            guard_image=guard_image,
            allowed=[AllowedTarget.parse(entry) for entry in egress_allow],
        )
        self._volumes = DockerVolumes(self._client, self._helpers, installation, image=guard_image)
        self._starts: dict[str, PodStart] = {}
        self.jobs = DockerJobs(self._client, self._helpers, self._networks, installation, image=guard_image)
        self._slow_client = DockerClient(base_url=base_url, max_workers=max_workers, timeout_s=TRANSFER_S)
        """For calls that move whole images."""
        self.builds = DockerBuilds(self._slow_client, self._networks, installation, runtime=runtime)
        self._runs = DockerRuns(
            self._client, base_url=base_url, timeout_s=timeout_s, installation=installation, runtime=runtime
        )

    async def check(self) -> EngineInfo:
        version = await self._client.call(
            lambda api: api.version(), doing="ask for the engine's version", timeout_s=_CHECK_TIMEOUT_S
        )
        return EngineInfo(name="Docker Engine", version=version["Version"])

    async def prepare_networks(self) -> None:
        await self._networks.prepare(rules_of_pods=False)

    async def prepare(self) -> None:
        await self._networks.prepare(rules_of_pods=True)
        await self._remove_orphaned_volumes()

    async def has_image(self, image: str) -> bool:
        def inspect(api: docker.APIClient) -> bool:
            try:
                _image_config(api, image)
            except ImageNotFound:
                return False
            return True

        return await self._client.call(inspect, doing=f"look for image {image}")

    async def pin_image(self, image: str) -> str | None:
        def pin(api: docker.APIClient) -> str | None:
            try:
                return docker_pods.pinned_name(image, api.inspect_image(image))  # type: ignore[no-untyped-call]  # stubs lack it
            except ImageNotFound:
                return None

        return await self._client.call(pin, doing=f"look for image {image}")

    async def read_file(self, image: str, path: str) -> bytes:
        return await self._helpers.read_file(image, path)

    async def start(self, spec: PodSpec) -> Pod:
        network = self._networks.for_new_pod(spec.pod_id, egress=spec.egress)
        while earlier := self._starts.get(spec.pod_id):
            await earlier.settled()
        start = PodStart(self._client, spec.pod_id, on_settled=lambda: self._forget(spec.pod_id))
        self._starts[spec.pod_id] = start
        try:
            return await self._start(start, spec, network)
        finally:
            start.end()

    async def _start(self, start: PodStart, spec: PodSpec, network: PodNetwork) -> Pod:
        frame = PodFrame.of(self._installation, spec)
        owner, *others = spec.containers
        states, attachment = await self._found(start, spec)
        is_elsewhere = attachment is not None and not attachment.is_as(network)
        if states and (states.get(owner.role) not in ("created", "running", "paused") or is_elsewhere):
            # The others hold on to a network namespace that is gone, or to one that its rules would not hold for.
            await start.call(lambda api: self._remove_all(api, spec.pod_id), doing="remove what is left of it")
            states = {}

        async def make(container: ContainerSpec) -> None:
            await self._make_unless_up(start, frame, container, states.get(container.role), network)

        async def run(container: ContainerSpec) -> None:
            await self._run(start, container.role, states.get(container.role))

        async def confine() -> None:
            if spec.egress and network.address is not None:
                await self._networks.set_rules(network.address, spec.egress_rules)

        async def make_and_run_owner() -> None:
            await all_of([make(owner), confine()])
            await run(owner)

        # Making takes no network, so the others are made while the first one starts.
        await all_of([make_and_run_owner(), *(make(container) for container in others)])
        for container in others:
            await run(container)
        return await self._running(start, spec)

    async def _make_unless_up(
        self,
        start: PodStart,
        frame: PodFrame,
        container: ContainerSpec,
        state: ContainerState | None,
        network: PodNetwork | None = None,
    ) -> None:
        """`state` is None for a container that is not there."""
        if state not in ("running", "paused"):
            await start.call(
                lambda api: self._make(api, frame, container, network, made=state is not None),
                doing=f"create container {container.role}",
                image=container.image,
            )

    async def _run(self, start: PodStart, role: str, state: ContainerState | None) -> None:
        name = docker_pods.container_name(start.pod_id, role)
        if state == "paused":
            await start.call(lambda api: api.unpause(name), doing=f"unpause container {role}")
        elif state != "running":
            await start.call(lambda api: api.start(name), doing=f"start container {role}")

    async def attach(self, pod_id: str, containers: Sequence[ContainerSpec]) -> Mapping[str, str]:
        while earlier := self._starts.get(pod_id):
            await earlier.settled()
        start = PodStart(self._client, pod_id, on_settled=lambda: self._forget(pod_id))
        self._starts[pod_id] = start
        refused: dict[str, str] = {}

        async def add(frame: PodFrame, container: ContainerSpec, state: ContainerState | None) -> None:
            try:
                await self._make_unless_up(start, frame, container, state)
                await self._run(start, container.role, state)
            except (EngineUnavailable, EngineOutOfSpace, PodGone):
                raise
            except ImageMissing as error:
                refused[container.role] = f"image {error.image} is not on the engine"
            except EngineError as error:
                refused[container.role] = str(error)

        try:
            listing = await start.call(lambda api: self._list(api, pod_id), doing="look for its containers")
            frame = docker_pods.frame_from_listing(self._installation, listing)
            if frame is None:
                raise PodGone(pod_id)
            seen = docker_pods.pods_from_listing(listing)[pod_id].containers
            states: dict[str, ContainerState] = {one.role: one.state for one in seen if one.state != "absent"}
            await all_of(add(frame, container, states.get(container.role)) for container in containers)
        finally:
            start.end()
        return refused

    async def detach(self, pod_id: str, roles: Iterable[str]) -> None:
        # Of one that was cut short, a thread may still be about to make what is to go.
        while earlier := self._starts.get(pod_id):
            await earlier.settled()
        unwanted = set(roles)
        listing = await self._client.call(lambda api: self._list(api, pod_id), doing=f"look at pod {pod_id}")
        frame = docker_pods.frame_from_listing(self._installation, listing)
        unwanted.difference_update(() if frame is None else frame.roles)

        def remove(api: docker.APIClient, item: Mapping[str, Any]) -> None:
            remove_container(api, item["Id"])
            ours = set(self._pod_volumes(api, pod_id))
            for volume in ours.intersection(docker_pods.volumes_of(item)):
                remove_volume(api, volume)

        await all_of(
            self._client.call(partial(remove, item=item), doing=f"remove a container of pod {pod_id}")
            for item in listing
            if item["Labels"].get(docker_pods.ROLE_LABEL) in unwanted
        )

    async def _found(self, start: PodStart, spec: PodSpec) -> tuple[dict[str, ContainerState], Attachment | None]:
        """States by role of what there is of the pod, and where its first container is attached."""
        listing = await start.call(lambda api: self._list(api, spec.pod_id), doing="look for its containers")
        pod = docker_pods.pods_from_listing(listing).get(spec.pod_id)
        present = [c for c in pod.containers if c.state != "absent"] if pod else []
        states: dict[str, ContainerState] = {container.role: container.state for container in present}
        return states, docker_pods.attachments(listing).get(spec.pod_id)

    async def _running(self, start: PodStart, spec: PodSpec) -> Pod:
        pods = await start.call(lambda api: self._pods(api, spec.pod_id), doing="look at its containers")
        pod = pods.get(spec.pod_id)
        if pod is None:
            raise EngineError(f"Pod {spec.pod_id} was removed by somebody else while it started.")
        for container in pod.own:
            if container.state != "running":
                code = "" if container.exit_code is None else f" (exit code {container.exit_code})"
                raise EngineError(
                    f"Container {container.role} of pod {spec.pod_id} is {container.state}{code} right after its start."
                )
        return pod

    async def run(self, pod_id: str, spec: RunSpec) -> RunOutcome:
        return await self._runs.run(pod_id, spec)

    async def remove_lost(self) -> None:
        await self._runs.remove_lost()
        await self.jobs.remove_lost()

    async def stop(self, pod_id: str) -> None:
        self._runs.end(pod_id)
        while start := self._starts.get(pod_id):
            start.abandon()
            await start.settled()
        for _ in range(_SWEEPS):
            containers = await self._client.call(
                lambda api: self._list(api, pod_id), doing=f"look for containers of pod {pod_id}"
            )
            if not containers and await self._remove_volumes(pod_id):
                await self._networks.forget(pod_id)
                return
            await all_of([self._remove(container["Id"], pod_id) for container in containers])
        raise EngineError(f"Pod {pod_id} could not be removed: something goes on making containers of it.")

    async def pause(self, pod_id: str) -> None:
        self._runs.end(pod_id)

        async def freeze(name: str, state: ContainerState) -> None:
            if state == "running":
                await self._client.call(lambda api: api.pause(name), doing=f"pause {name}")

        await self._on_each(pod_id, freeze)

    async def halt(self, pod_id: str) -> None:
        self._runs.end(pod_id)

        async def end(name: str, state: ContainerState) -> None:
            if state == "paused":  # the engine ends no container that cannot take the signal
                await self._client.call(lambda api: api.unpause(name), doing=f"unpause {name}")
            if state in ("running", "paused"):
                await self._client.call(lambda api: api.stop(name, timeout=_HALT_GRACE_S), doing=f"halt {name}")

        await self._on_each(pod_id, end)

    async def resume(self, pod_id: str) -> Pod:
        async def wake(name: str, state: ContainerState) -> None:
            if state == "paused":
                await self._client.call(lambda api: api.unpause(name), doing=f"unpause {name}")
            elif state != "running":
                await self._client.call(lambda api: api.start(name), doing=f"start {name} again")

        pod = await self._whole_pod(pod_id)
        if all(container.state == "paused" for container in pod.containers):
            await self._on_each(pod_id, wake)
        else:
            # After a halt the first container makes the network namespace that the others join.
            for container in pod.containers:
                await wake(docker_pods.container_name(pod_id, container.role), container.state)
        return await self._whole_pod(pod_id)

    async def set_boot_id(self, pod_id: str, role: str, boot_id: str) -> None:
        name = docker_pods.container_name(pod_id, role)
        await self._helpers.set_boot_id(self._guard_image, name, boot_id, doing=f"give {name} a boot id")

    async def snapshot(self, pod_id: str, role: str, image: str) -> None:
        name, _, tag = image.partition(":")

        def commit(api: docker.APIClient) -> None:
            try:
                # The engine pauses a running container meanwhile, so that its files are those of one moment.
                api.commit(docker_pods.container_name(pod_id, role), repository=name, tag=tag)
            except NotFound:
                raise PodGone(pod_id) from None

        await self._slow_client.call(commit, doing=f"save the files of {role} in pod {pod_id}")

    async def remove_image(self, image: str) -> bool:
        return await self._client.call(lambda api: remove_image(api, image), doing=f"remove image {image}")

    async def set_network(self, pod_id: str, rules: EgressRules) -> None:
        listing = await self._client.call(lambda api: self._list(api, pod_id), doing=f"look at pod {pod_id}")
        attachment = docker_pods.attachments(listing).get(pod_id)
        if attachment is None:
            raise PodGone(pod_id)
        if self._networks.is_offline(attachment.network):
            if not rules.is_closed:
                raise EngineError(f"Pod {pod_id} was made without a way out, and none can be opened later.")
        elif attachment.address is None:
            raise EngineError(f"Pod {pod_id} has no address while it does not run, so no rules can be kept for it.")
        else:
            await self._networks.set_rules(attachment.address, rules)

    async def observe(self) -> Mapping[str, Pod]:
        return await self._client.call(self._pods, doing="list the sandboxes' containers")

    async def logs(self, pod_id: str, role: str, *, tail: int, timestamps: bool = False) -> str:
        def read(api: docker.APIClient) -> str:
            name = docker_pods.container_name(pod_id, role)
            try:
                output = api.logs(name, stdout=True, stderr=True, tail=tail, timestamps=timestamps)
            except NotFound:
                return ""
            return output.decode(errors="replace")

        return await self._client.call(read, doing=f"read the log of {role} in pod {pod_id}")

    async def create_volume(self, name: str) -> None:
        await self._volumes.create(name)

    async def remove_volume(self, name: str) -> bool:
        return await self._volumes.remove(name)

    async def volumes(self) -> frozenset[str]:
        return await self._volumes.names()

    async def remove_installation(self, *, with_volumes: bool = False) -> tuple[str, ...]:
        await self.builds.remove_containers()
        await self.jobs.remove_all()
        await self._runs.remove_lost()
        for _ in range(_SWEEPS):
            for pod_id in await self.observe():
                await self.stop(pod_id)
            if not (held := await self._networks.remove()):
                break
            # The engine still carries out a start that a killed control plane began.
            await asyncio.sleep(_NETWORK_RETRY_S)
        await self._remove_orphaned_volumes()
        if with_volumes:
            for volume in await self._volumes.names():
                await self._volumes.remove(volume)
        await self._helpers.remove_all()
        return held

    async def aclose(self) -> None:
        await self._runs.aclose()
        await self.builds.aclose()
        self._networks.close()
        await self._client.aclose()

    async def _whole_pod(self, pod_id: str) -> Pod:
        """Raises: PodGone unless every container is there."""
        pods = await self._client.call(lambda api: self._pods(api, pod_id), doing=f"look at pod {pod_id}")
        pod = pods.get(pod_id)
        if pod is None or any(container.state == "absent" for container in pod.containers):
            raise PodGone(pod_id)
        return pod

    async def _on_each(self, pod_id: str, work: Callable[[str, ContainerState], Coroutine[Any, Any, None]]) -> None:
        """Call `work` with name and state of each container, side by side. Raises: PodGone."""
        pod = await self._whole_pod(pod_id)
        await all_of(work(docker_pods.container_name(pod_id, c.role), c.state) for c in pod.containers)

    async def _remove(self, container: str, pod_id: str) -> None:
        await self._client.call(
            lambda api: remove_container(api, container), doing=f"remove a container of pod {pod_id}"
        )

    async def _remove_volumes(self, pod_id: str) -> bool:
        """False if a container holds one that the caller has not seen."""

        def remove(api: docker.APIClient) -> bool:
            return [volume for volume in self._pod_volumes(api, pod_id) if not remove_volume(api, volume)] == []

        return await self._client.call(remove, doing=f"remove volumes of pod {pod_id}")

    async def _remove_orphaned_volumes(self) -> None:
        """Those of pods without a container, which `observe` does not show: what a stop that was cut short leaves."""

        def remove(api: docker.APIClient) -> None:
            for volume in self._pod_volumes(api):
                with suppress(APIError):  # one that the engine does not let go must keep no pod from starting
                    remove_volume(api, volume)

        await self._client.call(remove, doing="remove volumes without a pod")

    def _forget(self, pod_id: str) -> None:
        del self._starts[pod_id]

    # What follows runs in a thread.

    def _list(self, api: docker.APIClient, pod_id: str | None = None) -> list[dict[str, Any]]:
        filters = docker_pods.label_filter(self._installation, pod_id)
        listing: list[dict[str, Any]] = api.containers(all=True, filters=filters)
        return listing

    def _pods(self, api: docker.APIClient, pod_id: str | None = None) -> dict[str, Pod]:
        return docker_pods.pods_from_listing(self._list(api, pod_id))

    def _pod_volumes(self, api: docker.APIClient, pod_id: str | None = None) -> list[str]:
        filters = docker_pods.label_filter(self._installation, pod_id)
        return [volume["Name"] for volume in api.volumes(filters=filters)["Volumes"] or ()]

    def _make(
        self,
        api: docker.APIClient,
        frame: PodFrame,
        container: ContainerSpec,
        network: PodNetwork | None,
        *,
        made: bool,
    ) -> None:
        if not made:
            for mount in container.mounts:
                if not mount.shared:
                    check_volume(api, self._installation, mount.volume)
            config = _image_config(api, container.image) if container.entrypoint_prefix else None
            arguments = docker_pods.container_arguments(frame, container, image_config=config)
            host = docker_pods.host_arguments(frame, container, network=network, runtime=self._runtime)
            if container.role == frame.owner and network is not None:
                arguments |= docker_pods.networking_arguments(network)
            api.create_container(**arguments, host_config=api.create_host_config(**host))
        if container.files:
            # Also into one that was made earlier: that start may have ended before it came to the files.
            name = docker_pods.container_name(frame.pod_id, container.role)
            api.put_archive(name, "/", docker_pods.archive(container.files))

    def _remove_all(self, api: docker.APIClient, pod_id: str) -> None:
        for item in self._list(api, pod_id):
            remove_container(api, item["Id"])


def _image_config(api: docker.APIClient, image: str) -> Mapping[str, Any]:
    """What an image brings along for its containers. Raises: ImageNotFound."""
    config: Mapping[str, Any] = api.inspect_image(image)["Config"]  # type: ignore[no-untyped-call]  # stubs lack it
    return config
