"""Containers of MCP servers that run from an image, and how their gateway is reached from them. Pure.

A pod with a gateway has one empty volume, in which its gateway listens on a socket, so that servers can come later. The
container of a server sees it, but cannot change anything in it; a token tells the gateway whose container calls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from itertools import count

from app.catalog import ContainerToolsRun, ImageRun
from app.engines.interface import ContainerSpec, File, Limits, VolumeMount

STDIO_BRIDGE = "/opt/sandgate/stdio-bridge"
"""Where the gateway's image keeps the program that becomes the entrypoint of image servers."""
GATEWAY_VOLUMES: Mapping[str, str] = {"bridges": "/run/servers"}
"""What the gateway's container mounts; docs/ARCHITECTURE.md, section 6.3."""

_VOLUMES: Mapping[str, str] = {"bridges": "/run/sandgate"}
_SOCKET = "/run/sandgate/gateway.sock"
_BRIDGE = "/.sandgate/stdio-bridge"
_GREETING = "/.sandgate/greeting"
_LIMITS = Limits(memory_mib=1024, cpus=1.0, pids=256)


def free_role(containers: Iterable[ContainerSpec]) -> str:
    """Of one more server beside `containers`: those that the pod has, or is about to lose."""
    roles = {container.role for container in containers}
    return next(role for number in count() if (role := f"server-{number}") not in roles)


def limits_of(run: ImageRun | ContainerToolsRun) -> Limits:
    return Limits(
        memory_mib=run.limits.memory_mib or _LIMITS.memory_mib,
        cpus=run.limits.cpus or _LIMITS.cpus,
        pids=run.limits.pids or _LIMITS.pids,
    )


def server_container(role: str, run: ImageRun, token: str) -> ContainerSpec:
    """`token` is what its gateway knows it by."""
    return ContainerSpec(
        role=role,
        image=run.image,
        limits=limits_of(run),
        entrypoint_prefix=(_BRIDGE, _SOCKET, _GREETING, "--"),
        command=run.command or None,
        env=run.env,
        # The image's own user reads it, whoever that is.
        files=(File(path=_GREETING, content=f"{token}\n".encode(), mode=0o444),),
        volumes={f"{role}-{name}": path for name, _, path in (volume.partition(":") for volume in run.volumes)},
        read_only_volumes=_VOLUMES,
        mounts=tuple(map(_operator_volume, run.operator_volumes)),
        capabilities=run.capabilities,
        user=run.user,
        has_network=not run.disable_network,
    )


def with_bridge(containers: Collection[ContainerSpec], bridge: bytes) -> list[ContainerSpec]:
    """As they are attached; `bridge` is the program's content."""
    file = File(path=_BRIDGE, content=bridge, mode=0o555)
    return [replace(container, files=(*container.files, file)) for container in containers]


def _operator_volume(text: str) -> VolumeMount:
    """A prefix of their own keeps these volumes apart from those that Sandgate makes."""
    name, path, *mode = text.split(":")
    return VolumeMount(volume=f"own-{name}", path=path, read_only=mode == ["ro"], shared=True)
