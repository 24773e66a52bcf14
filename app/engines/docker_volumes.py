"""Volumes that outlive pods, as named volumes of the engine."""

from __future__ import annotations

import docker
from docker.errors import APIError, NotFound

from app.engines.docker_client import DockerClient
from app.engines.docker_helpers import HelperContainers
from app.engines.docker_pods import INSTALLATION_LABEL, kept_volume_name
from app.errors import EngineError

_VOLUME_LABEL = "sandgate.volume"
"""Holds the volume's name. Not the label of pods, with which a volume goes when its pod does."""
_MISCOUNTED = "volume has active mounts"
"""An engine that was started anew beside running containers (live restore) loses count of who uses their volumes, and
removes none that had to be mounted before its next start: up to Engine 24.0.2, moby/moby#44422."""


class DockerVolumes:
    def __init__(self, client: DockerClient, helpers: HelperContainers, installation: str, *, image: str) -> None:
        """`image` is one that is there: a container of it, never started, is the way into a volume."""
        self._client = client
        self._helpers = helpers
        self._installation = installation
        self._image = image

    async def create(self, name: str) -> None:
        volume = kept_volume_name(self._installation, name)
        labels = {INSTALLATION_LABEL: self._installation, _VOLUME_LABEL: name}
        doing = f"create volume {name}"
        await self._client.call(lambda api: api.create_volume(volume, labels=labels), doing=doing)
        await self._helpers.open_volume(self._image, volume, doing=doing)

    async def remove(self, name: str) -> bool:
        volume = kept_volume_name(self._installation, name)
        return await self._client.call(lambda api: remove_volume(api, volume), doing=f"remove volume {name}")

    async def names(self) -> frozenset[str]:
        def listed(api: docker.APIClient) -> frozenset[str]:
            filters = {"label": [f"{INSTALLATION_LABEL}={self._installation}", _VOLUME_LABEL]}
            return frozenset(
                volume["Labels"][_VOLUME_LABEL] for volume in api.volumes(filters=filters)["Volumes"] or ()
            )

        return await self._client.call(listed, doing="list volumes")


def check_volume(api: docker.APIClient, installation: str, name: str) -> None:
    """Raises: EngineError if the volume is gone: the engine itself would make an empty one without a word."""
    try:
        api.inspect_volume(kept_volume_name(installation, name))
    except NotFound:
        raise EngineError(f"Volume {name} is not on the engine.") from None


def remove_volume(api: docker.APIClient, volume: str) -> bool:
    """False if a container holds it, running or not. One that the engine itself holds is left until its next start."""
    try:
        api.remove_volume(volume)
    except NotFound:
        return True
    except APIError as error:
        if error.status_code == 409:
            return False
        if _MISCOUNTED not in str(error.explanation):
            raise
    return True
