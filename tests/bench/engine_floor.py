"""What the engine itself takes for the same containers, with nothing of the product in between."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import docker
from docker.types import Mount

from app.engines.docker_pods import shared_volume_name
from app.engines.image_sources import ImageTags
from app.packages import STORE_MOUNT
from tests.shipped_packages import shipped_package

_LABEL = "sandgate.bench"
_SERVER_LIMIT_S = 60.0
_STORE = Mount(
    target=STORE_MOUNT.path, source=shared_volume_name(STORE_MOUNT.volume), type="volume", no_copy=True, read_only=True
)
_TIME_SERVER = f"{shipped_package('time').directory}/bin/mcp-server-time --local-timezone=UTC"


@dataclass(frozen=True, slots=True)
class FloorContainer:
    """One container that runs, and what the engine can do with it."""

    client: docker.APIClient
    name: str

    def put(self, content: bytes) -> None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            entry = tarfile.TarInfo("content")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        assert self.client.put_archive(self.name, "/tmp", archive.getvalue())

    def get(self) -> bytes:
        stream, _ = self.client.get_archive(self.name, "/tmp/content")
        return b"".join(stream)

    def freeze(self) -> None:
        self.client.pause(self.name)

    def thaw(self) -> None:
        self.client.unpause(self.name)

    def commit(self) -> None:
        self.client.remove_image(self.client.commit(self.name)["Id"])


class EngineFloor:
    def __init__(self, client: docker.APIClient, images: ImageTags, network: str = "bridge") -> None:
        """`network` is what containers are on; the default is the engine's own."""
        self._client = client
        self._images = images
        self._network = network

    def on(self, network: str) -> EngineFloor:
        return EngineFloor(self._client, self._images, network)

    def one_container_ms(self) -> float:
        """Create and start one container of the workspace image."""
        return self._timed([self._images.workspace])

    def two_containers_ms(self) -> float:
        """The same of the gateway image, and one of the workspace image in its network namespace."""
        return self._timed([self._images.gateway, self._images.workspace])

    def server_in_container_ms(self) -> float:
        """Create and start a container that runs the server `time`, up to the server's answer to `initialize`."""
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
        request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params})
        script = f"(echo '{request}'; exec sleep 60) | {_TIME_SERVER} | head -n 1"
        began = time.perf_counter()
        with self._started([self._images.gateway], command=["/bin/sh", "-c", script]) as (container,):
            # Asked for again and again: the stream of the engine's client cannot be closed without a warning.
            while not self._client.logs(container, stderr=False):
                assert time.perf_counter() < began + _SERVER_LIMIT_S, self._client.logs(container).decode()
                time.sleep(0.01)
            return (time.perf_counter() - began) * 1000

    @contextmanager
    def container(self) -> Iterator[FloorContainer]:
        """One of the workspace image."""
        with self._started([self._images.workspace]) as (name,):
            yield FloorContainer(self._client, name)

    def _timed(self, images: list[str]) -> float:
        began = time.perf_counter()
        with self._started(images):
            return (time.perf_counter() - began) * 1000

    @contextmanager
    def _started(self, images: list[str], command: Sequence[str] = ("sleep", "600")) -> Iterator[list[str]]:
        made: list[str] = []
        try:
            for image in images:
                network = f"container:{made[0]}" if made else self._network
                host = self._client.create_host_config(network_mode=network, init=True, mounts=[_STORE])
                container = self._client.create_container(
                    image, entrypoint=list(command), command=[], host_config=host, labels={_LABEL: "floor"}
                )["Id"]
                made.append(container)
                self._client.start(container)
            yield made
        finally:
            for container in reversed(made):
                self._client.remove_container(container, force=True, v=True)
