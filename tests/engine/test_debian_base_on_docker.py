"""What the base image starts from where no registry gives it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import docker
import pytest

from app.engines.debian_base import MADE_HERE, debian_base, is_present
from app.errors import EngineError

pytestmark = pytest.mark.docker

UNKNOWN_REGISTRY = "registry.invalid/debian:trixie-slim"
"""RFC 2606: the name resolves nowhere."""


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture
def silent_registry() -> Iterator[str]:
    """Name of an image whose registry takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}/debian:trixie-slim"


def test_an_image_that_is_present_is_taken_as_it_is(client: docker.DockerClient, base_image: str) -> None:
    lines: list[str] = []
    assert debian_base(client, base_image, lines.append) == base_image
    assert lines == []


def test_without_a_registry_debian_is_made_here_and_the_reason_reported(client: docker.DockerClient) -> None:
    lines: list[str] = []
    if os.geteuid() != 0 and not is_present(client, MADE_HERE):
        with pytest.raises(EngineError, match=f"{UNKNOWN_REGISTRY}.*apt-get install debootstrap.*SANDGATE_BASE_IMAGE"):
            debian_base(client, UNKNOWN_REGISTRY, lines.append)
    else:
        assert debian_base(client, UNKNOWN_REGISTRY, lines.append) == MADE_HERE
        assert lines[-1] == f"using {MADE_HERE} instead of {UNKNOWN_REGISTRY}"
    assert lines[0].startswith(f"{UNKNOWN_REGISTRY} cannot be pulled: ")
    assert "registry.invalid" in lines[0].removeprefix(UNKNOWN_REGISTRY)


def test_a_registry_that_says_nothing_is_not_waited_for(client: docker.DockerClient, silent_registry: str) -> None:
    """Without root nor a Debian made before, what follows is an error; either way the reason is told first."""
    lines: list[str] = []
    with suppress(EngineError):
        debian_base(client, silent_registry, lines.append, registry_silence_s=0.5)
    assert lines[0] == f"{silent_registry} cannot be pulled: its registry said nothing for 0.5 s"
