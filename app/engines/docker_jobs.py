"""Jobs on Docker: a container that runs to its end, known by its name to every process that asks for the same work.

The container is the lock. Docker refuses a second one of its name, so whoever comes later waits for the one that is
there, also when the process that started it is gone; and as its program ends itself in time, no lock outlives its use.
"""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import docker
from docker.errors import APIError, NotFound
from docker.types import LogConfig, Mount

from app.engines import docker_pods
from app.engines.docker_client import DockerClient
from app.engines.docker_helpers import HelperContainers, remove_container
from app.engines.docker_networks import DockerNetworks
from app.engines.docker_pods import INSTALLATION_LABEL, PodNetwork
from app.engines.jobs import JobOutcome, JobSpec, Report

_JOB_LABEL = "sandgate.job"
"""Holds the job's name. Not the label that pods have, so that a job is never taken for a part of one."""
_POLL_S = 0.25
_KILL_GRACE_S = 10
_OUTPUT_LINES = 40
_ENDED = ("exited", "dead")
_UNTOLD_S = 600
"""How long a job that has ended waits for somebody who asks how it went."""


class DockerJobs:
    def __init__(
        self,
        client: DockerClient,
        helpers: HelperContainers,
        networks: DockerNetworks,
        installation: str,
        *,
        image: str,
    ) -> None:
        """`image` is one that is there: a container of it, never started, is the way into a shared volume."""
        self._client = client
        self._helpers = helpers
        self._networks = networks
        self._installation = installation
        self._image = image
        self._untold: set[str] = set()
        """Names of jobs that a caller here gave up waiting for, and that nobody here has heard of since."""

    async def run(self, spec: JobSpec, report: Report) -> JobOutcome:
        try:
            outcome = await self._run(spec, report)
        except asyncio.CancelledError:
            self._untold.add(spec.name)
            raise
        self._untold.discard(spec.name)
        return outcome

    async def _run(self, spec: JobSpec, report: Report) -> JobOutcome:
        network = self._networks.for_pod(egress=True)
        doing = f"run job {spec.name}"
        await self._client.call(lambda api: self._begin(api, spec, network), doing=doing, image=spec.image)
        told = ""
        while True:
            state, output = await self._client.call(lambda api: _look(api, _name(spec)), doing=doing)
            last = output.rstrip().rpartition("\n")[2]
            if last and last != told:
                told = last
                report(last)
            if state is None:
                return JobOutcome(exit_code=None, output=output)
            if state["Status"] in _ENDED:
                await self._client.call(lambda api: remove_container(api, _name(spec)), doing=doing)
                return JobOutcome(exit_code=state["ExitCode"], output=output)
            await asyncio.sleep(_POLL_S)

    async def read_shared(self, volume: str, directory: str) -> Mapping[str, bytes]:
        doing = f"read {directory} of volume {volume}"
        source = docker_pods.shared_volume_name(volume)
        archive = await self._helpers.read_volume(self._image, source, directory, doing=doing)
        return {} if archive is None else _files(archive)

    async def others_using(self, volume: str) -> frozenset[str]:
        def look(api: docker.APIClient) -> frozenset[str]:
            filters = {"volume": docker_pods.shared_volume_name(volume), "label": [INSTALLATION_LABEL]}
            return frozenset(
                container["Labels"][INSTALLATION_LABEL]
                for container in api.containers(all=True, filters=filters)
                if not (_JOB_LABEL in container["Labels"] and container["State"] in _ENDED)
            )

        found = await self._client.call(look, doing=f"see who uses volume {volume}")
        return found - {self._installation}

    async def remove_lost(self, *, older_than_s: float = _UNTOLD_S) -> None:
        """Those of this installation that ended so long ago that nobody asks how they went. Safe to repeat."""

        def remove(api: docker.APIClient) -> None:
            for container in self._list(api, status=list(_ENDED)):
                with suppress(APIError):  # one that the engine does not let go must not keep the others
                    ended_at = datetime.fromisoformat(api.inspect_container(container["Id"])["State"]["FinishedAt"])
                    if datetime.now(UTC) - ended_at >= timedelta(seconds=older_than_s):
                        remove_container(api, container["Id"])

        await self._client.call(remove, doing="remove jobs that nobody waits for")

    async def remove_all(self) -> None:
        """Those of this installation. Safe to repeat."""

        def remove(api: docker.APIClient) -> None:
            for container in self._list(api):
                remove_container(api, container["Id"])

        await self._client.call(remove, doing="remove jobs")

    # What follows runs in a thread.

    def _list(self, api: docker.APIClient, **filters: list[str]) -> list[dict[str, Any]]:
        labels = [f"{INSTALLATION_LABEL}={self._installation}", _JOB_LABEL]
        listing: list[dict[str, Any]] = api.containers(all=True, filters={"label": labels, **filters})
        return listing

    def _begin(self, api: docker.APIClient, spec: JobSpec, network: PodNetwork) -> None:
        with suppress(NotFound):
            state = api.inspect_container(_name(spec))["State"]
            # Who gave up waiting hears what went wrong when he comes back; what a killed process left is done anew.
            is_to_be_told = spec.name in self._untold and state["ExitCode"] != 0
            if state["Status"] in _ENDED and not is_to_be_told:
                remove_container(api, _name(spec))
        try:
            api.create_container(**self._arguments(spec), host_config=self._host(api, spec, network))
        except APIError as error:
            if error.status_code != 409:
                raise
        # Also for one that was there: whoever made it may have been killed before this.
        try:
            if api.inspect_container(_name(spec))["State"]["Status"] == "created":
                api.put_archive(_name(spec), "/", docker_pods.archive(spec.files))
                api.start(_name(spec))
        except NotFound:
            return

    def _arguments(self, spec: JobSpec) -> dict[str, Any]:
        bounded = ["timeout", f"--kill-after={_KILL_GRACE_S}", str(spec.timeout_s), *spec.command]
        return {
            "image": spec.image,
            "name": _name(spec),
            "entrypoint": bounded,
            "command": [],
            "user": "0:0",
            "labels": {INSTALLATION_LABEL: self._installation, _JOB_LABEL: spec.name},
            "use_config_proxy": False,
        }

    def _host(self, api: docker.APIClient, spec: JobSpec, network: PodNetwork) -> dict[str, Any]:
        arguments = {
            **docker_pods.attachment_arguments(network),
            **docker_pods.confinement(spec.limits, spec.capabilities, new_privileges=False),
            "log_config": LogConfig(type="json-file", config={"max-size": "1m", "max-file": "2"}),
            "mounts": [
                Mount(target=path, source=docker_pods.shared_volume_name(volume), type="volume", no_copy=True)
                for volume, path in spec.shared.items()
            ],
        }
        config: dict[str, Any] = api.create_host_config(**arguments)
        return config


def _name(spec: JobSpec) -> str:
    return f"sandgate-job-{spec.name}"


def _look(api: docker.APIClient, name: str) -> tuple[Mapping[str, Any] | None, str]:
    """The container's state, None once it is gone, and the last lines of its output."""
    try:
        state: Mapping[str, Any] = api.inspect_container(name)["State"]
        output = api.logs(name, stdout=True, stderr=True, tail=_OUTPUT_LINES)
    except NotFound:
        return None, ""
    except APIError as error:
        if error.status_code != 409:  # somebody is removing it
            raise
        return None, ""
    return state, output.decode(errors="replace")


def _files(archive: bytes) -> dict[str, bytes]:
    """Regular files of a tar by their path below its first directory."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            if file is not None:
                found[member.name.partition("/")[2]] = file.read()
    return found
