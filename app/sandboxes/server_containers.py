"""Containers of MCP servers that run from an image, and the sockets they are reached by. Pure.

A pod with a gateway has a number of empty volumes for sockets from its start, so that servers can come later. The
container of a server mounts the one it was given and no other, so no server can reach another one's socket.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from app.catalog import ContainerToolsRun, ImageRun
from app.engines.interface import ContainerSpec, File, Limits, VolumeMount

STDIO_BRIDGE = "/opt/sandgate/stdio-bridge"
"""Where the gateway's image keeps the program that becomes the entrypoint of image servers."""
SOCKETS = 8
"""Volumes for sockets in a pod that is made before anybody says how many it needs."""

_BRIDGE_IN_SERVER = "/.sandgate/stdio-bridge"
_IN_SERVER = "/run/sandgate-server"
_LIMITS = Limits(memory_mib=1024, cpus=1.0, pids=256)


@dataclass(frozen=True, slots=True)
class Place:
    number: int
    """Tells the server from all others that the pod has or is about to lose."""
    socket: int

    @property
    def role(self) -> str:
        return f"server-{self.number}"

    @property
    def path(self) -> str:
        """Where the gateway finds the socket."""
        return f"/run/servers/{self.socket}/{self.role}.sock"


def socket_volumes(count: int) -> dict[str, str]:
    """What the gateway's container mounts."""
    return {_volume(socket): f"/run/servers/{socket}" for socket in range(count)}


def free_place(present: Iterable[ContainerSpec], leaving: Iterable[ContainerSpec], sockets: int) -> Place | None:
    """Where one more server can go; None if the pod is full. Those that are `leaving` are gone before it comes."""
    present = list(present)
    roles = {container.role for container in (*present, *leaving)}
    taken = {volume for container in present for volume in container.volumes}
    free = [socket for socket in range(sockets) if _volume(socket) not in taken]
    number = next(number for number in range(len(roles) + 1) if f"server-{number}" not in roles)
    return Place(number, free[0]) if free else None


def limits_of(run: ImageRun | ContainerToolsRun) -> Limits:
    return Limits(
        memory_mib=run.limits.memory_mib or _LIMITS.memory_mib,
        cpus=run.limits.cpus or _LIMITS.cpus,
        pids=run.limits.pids or _LIMITS.pids,
    )


def server_container(place: Place, run: ImageRun) -> ContainerSpec:
    own = {f"{place.role}-{name}": path for name, _, path in (volume.partition(":") for volume in run.volumes)}
    return ContainerSpec(
        role=place.role,
        image=run.image,
        limits=limits_of(run),
        entrypoint_prefix=(_BRIDGE_IN_SERVER, f"{_IN_SERVER}/{place.role}.sock", "--"),
        command=run.command or None,
        env=run.env,
        volumes={_volume(place.socket): _IN_SERVER, **own},
        mounts=tuple(map(_operator_volume, run.operator_volumes)),
        capabilities=run.capabilities,
        user=run.user,
        has_network=not run.disable_network,
    )


def with_bridge(containers: Collection[ContainerSpec], bridge: bytes) -> list[ContainerSpec]:
    """As they are attached; `bridge` is the program's content."""
    file = File(path=_BRIDGE_IN_SERVER, content=bridge, mode=0o555)
    return [replace(container, files=(file,)) for container in containers]


def _volume(socket: int) -> str:
    return f"socket-{socket}"


def _operator_volume(text: str) -> VolumeMount:
    """A prefix of their own keeps these volumes apart from those that Sandgate makes."""
    name, path, *mode = text.split(":")
    return VolumeMount(volume=f"own-{name}", path=path, read_only=mode == ["ro"], shared=True)
