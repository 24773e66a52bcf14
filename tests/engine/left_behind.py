"""What test processes that were killed left on the engine: names of pods are the same in every run."""

from __future__ import annotations

import re
from collections.abc import Iterator

import docker
import psutil

from app.engines.docker_engine import DockerEngine
from app.engines.docker_pods import INSTALLATION_LABEL

_INSTALLATION = re.compile(r"tests-(?P<pid>\d+)(-.*)?")
_INTERNET = re.compile(r"/tests-(?P<pid>\d+)-internet")


async def remove_left_behind(api: docker.APIClient, base_image: str) -> None:
    """Installations that are named after a process which is gone, and what stood for their internet."""
    names = {name for one in api.containers(all=True) for name in one["Names"]}
    for name in _of_the_dead(_INTERNET, names):
        api.remove_container(name, force=True)
    for installation in _of_the_dead(_INSTALLATION, set(_installations(api))):
        engine = DockerEngine(installation, guard_image=base_image)
        try:
            await engine.remove_installation(with_volumes=True)
        finally:
            await engine.aclose()


def _installations(api: docker.APIClient) -> Iterator[str]:
    filters = {"label": INSTALLATION_LABEL}
    volumes = api.volumes(filters=filters)["Volumes"] or ()
    for found in (*api.containers(all=True, filters=filters), *api.networks(filters=filters), *volumes):
        yield found["Labels"][INSTALLATION_LABEL]


def _of_the_dead(pattern: re.Pattern[str], names: set[str]) -> list[str]:
    matches = [match for name in names if (match := pattern.fullmatch(name))]
    return sorted(match.string for match in matches if not psutil.pid_exists(int(match["pid"])))
