"""A container that stays and answers requests of one line with one line, over its standard streams.

For what a short-lived helper would be too slow for. It is reached through the engine alone, as everything is: no port,
no token, and whoever may talk to it may already do everything to the engine's host. It outlives the control plane; the
next one finds it by its labels.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import docker
from docker.errors import APIError
from docker.types import LogConfig

from app.engines import docker_pods
from app.engines.docker_client import DockerClient
from app.engines.docker_helpers import remove_container
from app.engines.interface import File
from app.errors import EngineError

_RESIDENT_LABEL = "sandgate.resident"
"""Holds the installation; neither a pod's label nor that of helpers, which are removed after a while."""
_NAME_LABEL = "sandgate.resident.name"
_VERSION_LABEL = "sandgate.resident.version"

_ANSWER_S = 30
_STDOUT = 1
_LOG_LINES = 5


@dataclass(frozen=True, slots=True)
class Resident:
    """What the container is made of."""

    version: str
    """Of all that follows: a running one of another version is replaced."""
    arguments: Mapping[str, Any]
    """Keyword arguments of `APIClient.create_container`."""
    files: tuple[File, ...] = field(default=(), repr=False)


class ResidentHelper:
    """Made at the first request. Its program reads `<number> <request>` and answers `<number> ok` or a reason."""

    def __init__(
        self,
        client: DockerClient,
        installation: str,
        name: str,
        *,
        image: str,
        make: Callable[[docker.APIClient], Resident],
    ) -> None:
        self._client = client
        self._labels = {_RESIDENT_LABEL: installation, _NAME_LABEL: name}
        self._name = name
        self._image = image
        self._make = make
        self._one_at_a_time = threading.Lock()
        self._stream: _Stream | None = None
        self._number = 0

    async def ask(self, request: str, *, doing: str) -> None:
        """Have the container carry out `request`, which is one line; safe to be carried out twice.

        Raises: EngineError with what it answers when that is not `ok`.
        """
        answer = await self._client.call(lambda api: self._ask(api, request), doing=doing, image=self._image)
        if answer != "ok":
            raise EngineError(f"Could not {doing}: {answer}")

    async def is_there(self) -> bool:
        return bool(await self._client.call(self._list, doing=f"look for the {self._name} helper"))

    async def remove(self) -> None:
        """Safe to repeat."""
        await self._client.call(self._remove, doing=f"remove the {self._name} helper")

    def close(self) -> None:
        """Let go of the container, which stays."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    # What follows runs in a thread.

    def _ask(self, api: docker.APIClient, request: str) -> str:
        with self._one_at_a_time:
            self._number += 1
            try:
                return self._attached(api).ask(self._number, request)
            except OSError:
                # It was removed or restarted since, or the engine was.
                self.close()
            try:
                return self._attached(api).ask(self._number, request)
            except OSError as error:
                self.close()
                raise EngineError(
                    f"The {self._name} helper does not answer ({error}).{self._last_words(api)}"
                ) from error

    def _attached(self, api: docker.APIClient) -> _Stream:
        if self._stream is None:
            resident = self._make(api)
            container = self._running(api, resident.version) or self._start(api, resident)
            self._stream = _Stream(api.attach_socket(container, {"stdin": 1, "stdout": 1, "stream": 1}))
        return self._stream

    def _running(self, api: docker.APIClient, version: str) -> str | None:
        """One that can be used; others are removed."""
        for item in self._list(api):
            if item["State"] == "running" and item["Labels"][_VERSION_LABEL] == version:
                return str(item["Id"])
            remove_container(api, item["Id"])
        return None

    def _start(self, api: docker.APIClient, resident: Resident) -> str:
        container: str = api.create_container(
            self._image,
            labels={**self._labels, _VERSION_LABEL: resident.version},
            stdin_open=True,
            detach=True,  # otherwise its input ends with the first connection to it
            use_config_proxy=False,
            **resident.arguments,
        )["Id"]
        try:
            if resident.files:
                api.put_archive(container, "/", docker_pods.archive(resident.files))
            api.start(container)
        except BaseException:
            remove_container(api, container)
            raise
        return container

    def _list(self, api: docker.APIClient) -> list[dict[str, Any]]:
        labels = [f"{name}={value}" for name, value in self._labels.items()]
        listing: list[dict[str, Any]] = api.containers(all=True, filters={"label": labels})
        return listing

    def _last_words(self, api: docker.APIClient) -> str:
        with suppress(APIError):
            for item in self._list(api):
                output = api.logs(item["Id"], stdout=False, tail=_LOG_LINES).decode(errors="replace").strip()
                return f" Last output: {output}" if output else ""
        return ""

    def _remove(self, api: docker.APIClient) -> None:
        with self._one_at_a_time:
            self.close()
            for item in self._list(api):
                remove_container(api, item["Id"])


class _Stream:
    """A connection to a container's standard streams, multiplexed as the engine's attach endpoint documents it."""

    def __init__(self, attached: Any) -> None:
        self._attached = attached
        # Over a unix socket or plain TCP the SDK gives a read-only wrapper of the socket.
        self._socket: socket.socket = getattr(attached, "_sock", attached)
        self._socket.settimeout(_ANSWER_S)
        self._unread = b""

    def ask(self, number: int, request: str) -> str:
        """Raises: OSError when the container ends or stays silent."""
        self._socket.sendall(f"{number} {request}\n".encode())
        while True:
            answered, _, answer = self._line().partition(" ")
            if answered == str(number):  # else it answers one that was given up
                return answer

    def close(self) -> None:
        with suppress(OSError):
            self._attached.close()
        with suppress(OSError):
            self._socket.close()

    def _line(self) -> str:
        while b"\n" not in self._unread:
            kind, length = struct.unpack(">BxxxL", self._exactly(8))
            payload = self._exactly(length)
            if kind == _STDOUT:
                self._unread += payload
        line, self._unread = self._unread.split(b"\n", 1)
        return line.decode(errors="replace")

    def _exactly(self, length: int) -> bytes:
        content = b""
        while len(content) < length:
            chunk = self._socket.recv(length - len(content))
            if not chunk:
                raise ConnectionResetError("it ended")
            content += chunk
        return content


def on_host_arguments(
    api: docker.APIClient, *, entrypoint: Iterable[str], user: str, capabilities: Iterable[str], **more: Any
) -> dict[str, Any]:
    """Of a container in the host's network namespace that can do nothing but what `capabilities` say."""
    return {
        "entrypoint": list(entrypoint),
        "command": [],
        "user": user,
        "host_config": api.create_host_config(
            network_mode="host",
            userns_mode="host",  # where the engine remaps users, remapped root has no say over the host's network
            init=True,
            cap_drop=["ALL"],
            cap_add=list(capabilities),
            security_opt=["no-new-privileges"],
            log_config=LogConfig(type="json-file", config={"max-size": "1m", "max-file": "2"}),
            **more,
        ),
    }
