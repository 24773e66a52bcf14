"""Short-lived containers that do for the control plane what only the engine can: on its host, and in an image."""

from __future__ import annotations

import io
import posixpath
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import docker
from docker.errors import APIError, ImageNotFound, NotFound
from docker.types import Mount

from app.engines import boot_id as boot_id_program
from app.engines.docker_client import DockerClient
from app.errors import EngineError

_HELPER_LABEL = "sandgate.helper"
"""Holds the installation. Not the label that pods have, so that a helper is never taken for a part of one."""
_TIMEOUT_S = 30
_LEFT_BEHIND_S = 120
"""A helper of this age has lost the process that made it."""
_LARGEST_FILE = 16 * 1024 * 1024
_MOST_LINKS = 8
_VOLUME_AT = "volume"
"""Where a helper sees a volume, relative to its root."""


class HelperContainers:
    def __init__(self, client: DockerClient, installation: str) -> None:
        self._client = client
        self._installation = installation

    async def run_on_host(self, image: str, script: str, environment: Mapping[str, str], *, doing: str) -> str:
        """Run a shell script in the host's network namespace with NET_ADMIN; gives what it prints.

        Raises: EngineError when it exits with another code than 0.
        """
        return await self._client.call(
            lambda api: self._run_on_host(api, image, script, environment, doing=doing), doing=doing, image=image
        )

    async def set_boot_id(self, image: str, container: str, boot_id: str, *, doing: str) -> None:
        """Let the processes of a running container read another kernel boot id. Raises: EngineError."""
        await self._client.call(
            lambda api: self._set_boot_id(api, image, container, boot_id, doing=doing), doing=doing, image=image
        )

    async def read_file(self, image: str, path: str) -> bytes:
        doing = f"read {path} from image {image}"
        return await self._client.call(lambda api: self._read_file(api, image, path), doing=doing, image=image)

    async def open_volume(self, image: str, volume: str, *, doing: str) -> None:
        """Let every user write to a volume's root directory. Safe to repeat."""
        await self._client.call(lambda api: self._open_volume(api, image, volume), doing=doing, image=image)

    async def read_volume(self, image: str, volume: str, directory: str, *, doing: str) -> bytes | None:
        """A tar of a directory of a volume; None if there is none of that name."""
        return await self._client.call(
            lambda api: self._read_volume(api, image, volume, directory), doing=doing, image=image
        )

    async def remove_all(self) -> None:
        """Those of this installation that a killed process left behind. Safe to repeat."""
        await self._client.call(self._remove_all, doing="remove helper containers")

    def _remove_all(self, api: docker.APIClient, *, older_than_s: float = 0.0) -> None:
        for helper in api.containers(all=True, filters={"label": f"{_HELPER_LABEL}={self._installation}"}):
            if helper["Created"] <= time.time() - older_than_s:
                remove_container(api, helper["Id"])

    def _run_on_host(
        self, api: docker.APIClient, image: str, script: str, environment: Mapping[str, str], *, doing: str
    ) -> str:
        arguments: dict[str, Any] = {
            "entrypoint": ["/bin/sh", "-euc", script],
            "environment": dict(environment),
            "user": "0:0",
            "host_config": api.create_host_config(
                network_mode="host",
                userns_mode="host",  # where the engine remaps users, remapped root has no say over the host's network
                cap_drop=["ALL"],
                cap_add=["NET_ADMIN"],
                security_opt=["no-new-privileges"],
                read_only=True,
                mem_limit="128m",
                pids_limit=64,
            ),
        }
        return self._run(api, image, arguments, doing=doing)

    def _set_boot_id(self, api: docker.APIClient, image: str, container: str, boot_id: str, *, doing: str) -> None:
        process = str(api.inspect_container(container)["State"]["Pid"])
        arguments: dict[str, Any] = {
            "entrypoint": ["python3", "-IS", "-c", boot_id_program.PROGRAM, process, boot_id],
            "user": "0:0",
            "host_config": api.create_host_config(
                pid_mode="host",
                network_mode="none",
                userns_mode="host",
                cap_drop=["ALL"],
                cap_add=list(boot_id_program.CAPABILITIES),
                # The engine's profile for containers forbids to mount.
                security_opt=["apparmor=unconfined", "no-new-privileges"],
                read_only=True,
                tmpfs={"/run": "size=64k"},
                mem_limit="64m",
                pids_limit=16,
            ),
        }
        self._run(api, image, arguments, doing=doing)

    def _run(self, api: docker.APIClient, image: str, arguments: Mapping[str, Any], *, doing: str) -> str:
        with self._container(api, image, arguments) as helper:
            api.start(helper)
            code = api.wait(helper, timeout=_TIMEOUT_S)["StatusCode"]
            output = api.logs(helper).decode(errors="replace")
        if code != 0:
            raise EngineError(f"Could not {doing}: {output.strip() or f'the helper exited with code {code}'}")
        return output

    def _read_file(self, api: docker.APIClient, image: str, path: str) -> bytes:
        found = path
        with self._container(api, image, {"network_disabled": True}) as never_started:
            for _ in range(_MOST_LINKS):
                try:
                    chunks, stat = api.get_archive(never_started, found)
                except NotFound as error:
                    raise EngineError(f"Image {image} has no file {path}.") from error
                if not stat["linkTarget"]:
                    return _only_file(chunks, f"{path} in image {image}")
                chunks.close()
                found = posixpath.join(posixpath.dirname(found), stat["linkTarget"])
        raise EngineError(f"{path} in image {image} is behind too many symbolic links.")

    def _open_volume(self, api: docker.APIClient, image: str, volume: str) -> None:
        mount = Mount(target=f"/{_VOLUME_AT}", source=volume, type="volume", no_copy=True)
        arguments = {"network_disabled": True, "host_config": api.create_host_config(mounts=[mount])}
        root = tarfile.TarInfo(_VOLUME_AT)
        root.type = tarfile.DIRTYPE
        root.mode = 0o777
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(root)
        with self._container(api, image, arguments) as never_started:
            api.put_archive(never_started, "/", buffer.getvalue())

    def _read_volume(self, api: docker.APIClient, image: str, volume: str, directory: str) -> bytes | None:
        mount = Mount(target=f"/{_VOLUME_AT}", source=volume, type="volume", no_copy=True, read_only=True)
        arguments = {"network_disabled": True, "host_config": api.create_host_config(mounts=[mount])}
        with self._container(api, image, arguments) as never_started:
            try:
                chunks, _ = api.get_archive(never_started, f"/{_VOLUME_AT}/{directory}")
            except NotFound:
                return None
            return _content(chunks, f"{directory} in volume {volume}")

    @contextmanager
    def _container(self, api: docker.APIClient, image: str, arguments: Mapping[str, Any]) -> Iterator[str]:
        self._remove_all(api, older_than_s=_LEFT_BEHIND_S)
        container: str = api.create_container(
            image,
            command=["true"],  # an image without a command of its own would be refused
            labels={_HELPER_LABEL: self._installation},
            use_config_proxy=False,
            **arguments,
        )["Id"]
        try:
            yield container
        finally:
            remove_container(api, container)


def remove_container(api: docker.APIClient, container: str) -> None:
    """Kill and remove a container with its anonymous volumes. Returns once it is gone; silent if it was already."""
    try:
        api.remove_container(container, force=True, v=True)
    except NotFound:
        return
    except APIError as error:
        if error.status_code != 409:  # somebody else is removing it
            raise
        _wait_until_removed(api, container)


def remove_image(api: docker.APIClient, image: str) -> bool:
    """Whether it is gone; one that a container needs stays."""
    try:
        api.remove_image(image)
    except ImageNotFound:
        return True
    except APIError as error:
        if error.status_code != 409:
            raise
        return False
    return True


def _wait_until_removed(api: docker.APIClient, container: str) -> None:
    try:
        api.wait(container, timeout=_TIMEOUT_S, condition="removed")
    except NotFound:
        return


def _content(chunks: Iterator[bytes], what: str) -> bytes:
    content = b""
    for chunk in chunks:
        content += chunk
        if len(content) > _LARGEST_FILE:
            raise EngineError(f"{what} is larger than {_LARGEST_FILE} bytes.")
    return content


def _only_file(chunks: Iterator[bytes], what: str) -> bytes:
    content = _content(chunks, what)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        member = tar.next()
        file = tar.extractfile(member) if member else None
        if file is None:
            raise EngineError(f"{what} is not a regular file.")
        return file.read()
