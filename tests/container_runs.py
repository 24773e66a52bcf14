"""A program in a container of its own, run to its end."""

from __future__ import annotations

from collections.abc import Sequence

import docker
from docker.types import Mount

_BOUND_S = 120


def run_in_container(
    client: docker.DockerClient, image: str, *command: str, user: str = "root", mounts: Sequence[Mount] = ()
) -> str:
    """Standard output of a program without a network. Fails unless it exits with 0.

    Not by the SDK's `containers.run`: it reads the log while the container ends, and a busy engine cuts that short.
    """
    container = client.containers.create(
        image,
        list(command[1:]),
        entrypoint=command[0],
        user=user,
        network_mode="none",
        environment={"HOME": "/tmp/home"},
        mounts=list(mounts),
    )
    try:
        container.start()
        status = container.wait(timeout=_BOUND_S)["StatusCode"]
        assert status == 0, f"exit code {status}: {container.logs(stdout=False).decode()}"
        return bytes(container.logs(stderr=False)).decode()
    finally:
        container.remove(force=True)
