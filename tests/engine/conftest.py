"""The engines under test. The one on Docker has an installation of its own, which is removed at the end."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import docker
import pytest
import pytest_asyncio

from app.engines.docker_engine import DockerEngine
from app.engines.images import image_tags
from app.engines.in_memory_engine import InMemoryEngine
from app.settings import ROOT, Settings
from tests.engine.internet import Internet
from tests.engine.left_behind import remove_left_behind
from tests.engine.subjects import DockerSubject, InMemorySubject, Subject

INSTALLATION = f"tests-{os.getpid()}"


@dataclass
class Listener:
    """A service on all addresses of this host: TCP accepts and says hello, UDP echoes, on the same port."""

    tcp: socket.socket
    udp: socket.socket
    received: list[bytes] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.tcp.getsockname()[1])

    def serve_tcp(self) -> None:
        while True:
            try:
                connection, _ = self.tcp.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"hello")

    def serve_udp(self) -> None:
        while True:
            data, sender = self.udp.recvfrom(1024)
            if data == b"end":
                return
            self.received.append(data)
            self.udp.sendto(data, sender)


def _listening() -> Iterator[Listener]:
    with socket.create_server(("0.0.0.0", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("0.0.0.0", tcp.getsockname()[1]))
        listener = Listener(tcp, udp)
        threads = [threading.Thread(target=listener.serve_tcp), threading.Thread(target=listener.serve_udp)]
        for thread in threads:
            thread.start()
        yield listener
        tcp.shutdown(socket.SHUT_RDWR)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ending:
            ending.sendto(b"end", ("127.0.0.1", listener.port))
        for thread in threads:
            thread.join(timeout=5)


@pytest.fixture(scope="session")
def allowed_listener() -> Iterator[Listener]:
    """Named in the engine's `egress_allow`."""
    yield from _listening()


@pytest.fixture(scope="session")
def other_listener() -> Iterator[Listener]:
    yield from _listening()


@pytest.fixture(scope="session")
def host_address() -> str:
    """This host's own address on the link of its default route. No packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("203.0.113.1", 9))
        return str(probe.getsockname()[0])


@pytest.fixture(scope="session")
def docker_api() -> Iterator[docker.APIClient]:
    client = docker.from_env()
    yield client.api
    client.close()


@pytest.fixture(scope="session")
def base_image(docker_api: docker.APIClient) -> str:
    settings = Settings()
    tags = image_tags(ROOT / "sandbox_images", base_image=settings.base_image, ca_bundle=settings.ca_bundle)
    if not docker_api.images(name=tags.base):
        pytest.fail(f"Image {tags.base} is not there: run `sandgate images build` first.")
    return tags.base


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tidy_engine(docker_api: docker.APIClient, base_image: str) -> None:
    await remove_left_behind(docker_api, base_image)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def prepared_engine(
    tidy_engine: None, base_image: str, allowed_listener: Listener, host_address: str
) -> AsyncIterator[DockerEngine]:
    engine = DockerEngine(
        INSTALLATION, guard_image=base_image, egress_allow=[f"{host_address}:{allowed_listener.port}"]
    )
    try:
        await engine.prepare()
        yield engine
    finally:
        await engine.remove_installation()
        await engine.aclose()


@pytest_asyncio.fixture(loop_scope="session")
async def docker_subject(
    prepared_engine: DockerEngine, base_image: str, docker_api: docker.APIClient
) -> AsyncIterator[DockerSubject]:
    yield DockerSubject(prepared_engine, base_image, INSTALLATION, docker_api)
    for pod_id in await prepared_engine.observe():
        await prepared_engine.stop(pod_id)


@pytest.fixture(scope="session")
def internet(tidy_engine: None, docker_api: docker.APIClient, base_image: str) -> Iterator[None]:
    made = Internet(docker_api, base_image, f"{INSTALLATION}-internet")
    try:
        made.start()
        yield
    finally:
        made.stop()


@pytest.fixture
def in_memory_subject() -> InMemorySubject:
    return InMemorySubject(InMemoryEngine({"image:1": {"/etc/debian_version": b"13.1\n"}}), "image:1")


@pytest.fixture(params=["in_memory", pytest.param("docker", marks=pytest.mark.docker)])
def subject(request: pytest.FixtureRequest) -> Subject:
    chosen: Subject = request.getfixturevalue(f"{request.param}_subject")
    return chosen
