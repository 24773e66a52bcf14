"""Programs that run once beside a pod, on Docker: a container for each, attached before its start, removed at its end.

The thread that makes a container sees to its removal, whatever becomes of the caller; who cancels a run kills the
container until that thread is through. What a killed process leaves is known by its label and removed by the next one.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import docker
from docker.types import LogConfig, Mount
from docker.utils.socket import STDOUT, frames_iter

from app.engines import docker_pods
from app.engines.docker_client import DockerClient
from app.engines.docker_helpers import remove_container
from app.engines.docker_pods import INSTALLATION_LABEL
from app.engines.docker_volumes import check_volume
from app.engines.runs import EndedBy, OutputKeeper, RunOutcome, RunSpec
from app.errors import EngineError, EngineUnavailable, PodGone

_RUN_LABEL = "sandgate.run"
"""Holds the pod's id. Not the label that pods have, so that a run is never taken for a part of one."""
_AT_ONCE = 16
"""Each takes a thread for as long as it lasts, and another one now and then while it is being ended."""
_KILL_AGAIN_S = 0.1
_GRACE_S = 30
"""For the engine to end a container and to remove it."""


class DockerRuns:
    def __init__(
        self,
        client: DockerClient,
        *,
        base_url: str | None,
        timeout_s: int,
        installation: str,
        runtime: str | None,
        at_once: int = _AT_ONCE,
    ) -> None:
        """`client` is for what takes no time."""
        self._client = client
        self._long_client = DockerClient(base_url=base_url, max_workers=2 * at_once, timeout_s=timeout_s)
        self._at_once = at_once
        self._places = asyncio.Semaphore(at_once)
        self._installation = installation
        self._runtime = runtime
        self._running: dict[str, _Run] = {}
        """By the name of the container."""
        self._work: set[asyncio.Future[RunOutcome]] = set()
        self._killing: set[asyncio.Task[None]] = set()

    async def run(self, pod_id: str, spec: RunSpec) -> RunOutcome:
        run = _Run(pod_id, spec)
        doing = f"run {spec.image} beside pod {pod_id}"
        deadline = asyncio.get_running_loop().time() + spec.timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                await self._places.acquire()
        except TimeoutError:
            raise EngineError(
                f"Could not {doing}: {self._at_once} programs run beside sandboxes, as many as may, and none ended"
                f" within {spec.timeout_s:g} s."
            ) from None
        self._running[run.name] = run
        work = self._long_client.submit(partial(self._carry_out, run=run), doing=doing, image=spec.image)
        self._work.add(work)
        work.add_done_callback(lambda done: self._over(run, done))
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(work)
        except TimeoutError:
            self._end(run, "time-out")
        finally:
            self._end(run, None)
        try:
            async with asyncio.timeout(_GRACE_S):
                return await asyncio.shield(work)
        except TimeoutError:
            raise EngineUnavailable(f"Could not {doing}: the engine does not end it.") from None

    def end(self, pod_id: str) -> None:
        """Have what runs beside a pod fail, soon. Safe to repeat."""
        for run in self._running.values():
            if run.pod_id == pod_id:
                self._end(run, None)

    async def remove_lost(self) -> None:
        """The containers that no run of this process is the owner of. Safe to repeat."""
        await self._client.call(self._remove, doing="remove what ran beside pods")

    async def aclose(self) -> None:
        for run in self._running.values():
            self._end(run, None)
        if self._work:
            await asyncio.wait(self._work, timeout=_GRACE_S)
        for killing in self._killing:
            killing.cancel()
        await self._long_client.aclose()

    def _over(self, run: _Run, done: asyncio.Future[RunOutcome]) -> None:
        run.is_over = True
        self._places.release()
        self._work.discard(done)
        del self._running[run.name]
        if not done.cancelled():
            done.exception()  # whoever waited for it may be gone

    def _end(self, run: _Run, why: EndedBy | None) -> None:
        if run.is_ended or run.is_over:
            return
        run.is_ended, run.ended_by = True, why
        killing = asyncio.create_task(self._kill(run), name=f"end {run.name}")
        self._killing.add(killing)
        killing.add_done_callback(self._killing.discard)

    async def _kill(self, run: _Run) -> None:
        """Until it is over: its container may be about to be made or started, and the engine may be away meanwhile."""
        while not run.is_over:
            with suppress(EngineError):
                await self._long_client.submit(lambda api: api.kill(run.name), doing=f"end {run.name}")
            await asyncio.sleep(_KILL_AGAIN_S)

    # What follows runs in a thread.

    def _carry_out(self, api: docker.APIClient, run: _Run) -> RunOutcome:
        if run.is_ended:
            return run.outcome()
        for mount in run.spec.mounts:
            if not mount.shared:
                check_volume(api, self._installation, mount.volume)
        api.create_container(**self._arguments(api, run))
        try:
            self._follow(api, run)
            return run.outcome()
        finally:
            remove_container(api, run.name)

    def _follow(self, api: docker.APIClient, run: _Run) -> None:
        with _attached(api, run.name) as stream:
            if run.is_ended:
                return
            api.start(run.name)
            for kind, data in _frames(stream):
                is_within = run.output.take(stdout=data) if kind == STDOUT else run.output.take(stderr=data)
                if not is_within and not run.is_too_much:
                    run.is_too_much = True
                    # By another thread: the engine ends nothing whose output is not read to its end.
                    run.loop.call_soon_threadsafe(self._end, run, "output")
        run.exit_code = api.wait(run.name, timeout=_GRACE_S)["StatusCode"]
        if not run.is_ended and run.exit_code != 0 and api.inspect_container(run.name)["State"]["OOMKilled"]:
            run.ended_by = "memory"

    def _arguments(self, api: docker.APIClient, run: _Run) -> dict[str, Any]:
        spec = run.spec
        network = f"container:{self._owner(api, run.pod_id)}" if spec.has_network else "none"
        host = {
            "network_mode": network,
            **docker_pods.confinement(spec.limits, (), new_privileges=False),
            "runtime": self._runtime,
            "log_config": LogConfig(type="none", config={}),
            "mounts": [
                Mount(
                    target=mount.path,
                    source=docker_pods.lasting_volume_name(self._installation, mount),
                    type="volume",
                    no_copy=True,
                    read_only=mount.read_only,
                )
                for mount in spec.mounts
            ],
        }
        return {
            "image": spec.image,
            "name": run.name,
            "command": None if spec.command is None else list(spec.command),
            "environment": dict(spec.env),
            "user": spec.user,
            "labels": {INSTALLATION_LABEL: self._installation, _RUN_LABEL: run.pod_id},
            "use_config_proxy": False,
            "host_config": api.create_host_config(**host),
        }

    def _owner(self, api: docker.APIClient, pod_id: str) -> str:
        """Name of the container that has the pod's network namespace. Raises: PodGone unless it runs."""
        listing = api.containers(all=True, filters=docker_pods.label_filter(self._installation, pod_id))
        frame = docker_pods.frame_from_listing(self._installation, listing)
        if frame is None or docker_pods.pods_from_listing(listing)[pod_id].address is None:
            raise PodGone(pod_id)
        return docker_pods.container_name(pod_id, frame.owner)

    def _remove(self, api: docker.APIClient) -> None:
        filters = {"label": [f"{INSTALLATION_LABEL}={self._installation}", _RUN_LABEL]}
        for container in api.containers(all=True, filters=filters):
            names = container["Names"] or ()  # one that the engine is removing may have none any more
            if not any(name.lstrip("/") in self._running for name in names):
                remove_container(api, container["Id"])


class _Run:
    """One run, as the thread that carries it out and the event loop share it."""

    def __init__(self, pod_id: str, spec: RunSpec) -> None:
        self.name = f"sandgate-{pod_id}-run-{uuid.uuid4().hex[:12]}"
        self.pod_id = pod_id
        self.spec = spec
        self.loop = asyncio.get_running_loop()
        self.output = OutputKeeper(spec)
        self.exit_code: int | None = None
        self.is_ended = False
        """It is not to go on; set before its container is killed."""
        self.is_too_much = False
        """What it writes."""
        self.ended_by: EndedBy | None = "itself"
        """None: whoever wanted it has given it up."""
        self.is_over = False
        """Its thread is through with it, or never came to it: nothing makes a container of it any more."""

    def outcome(self) -> RunOutcome:
        """Raises: EngineError if it was given up."""
        if self.ended_by is None:
            raise EngineError(f"The run of {self.spec.image} was ended with what it ran for.")
        return self.output.outcome(self.exit_code, self.ended_by)


def _frames(stream: Any) -> Iterator[tuple[int, bytes]]:
    """Until the container ends, which holds its streams open until then. Raises: EngineUnavailable."""
    try:
        yield from frames_iter(stream, tty=False)  # type: ignore[no-untyped-call]  # stubs lack it
    except OSError as error:
        raise EngineUnavailable("The connection to a container's output is lost.") from error


@contextmanager
def _attached(api: docker.APIClient, container: str) -> Iterator[Any]:
    """A socket with what the container writes from now on, multiplexed as the engine's attach endpoint documents it."""
    stream = api.attach_socket(container, {"stdout": 1, "stderr": 1, "stream": 1})
    # Over a unix socket or plain TCP the SDK gives a read-only wrapper of the socket.
    inner = getattr(stream, "_sock", stream)
    try:
        yield stream
    finally:
        for one in (stream, inner):
            with suppress(OSError):
                one.close()
