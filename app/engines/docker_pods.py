"""Pods in Docker's terms: names, labels, what containers are created with, and pods as a listing shows them. No I/O."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, Self

from docker.types import DriverConfig, LogConfig, Mount

from app.engines.interface import (
    ContainerSpec,
    ContainerState,
    ContainerStatus,
    File,
    Limits,
    Pod,
    PodSpec,
    VolumeMount,
)

INSTALLATION_LABEL = "sandgate.installation"
POD_LABEL = "sandgate.pod"
ROLE_LABEL = "sandgate.role"
ROLES_LABEL = "sandgate.roles"
"""All roles of the pod in order, with commas: so that a half-made pod is known as one, and its owner as the first."""
SPEC_LABEL_PREFIX = "sandgate.label."
"""In front of a PodSpec's labels, so that an image's own labels are not taken for them."""

_MIB = 1024 * 1024
_CPU_PERIOD_US = 100_000
_SHARED_MEMORY = 64 * _MIB
_VOLUME_OPTIONS = {"type": "tmpfs", "device": "tmpfs", "o": "mode=1777,size=64m"}

_STATES: Mapping[str, ContainerState] = {"created": "created", "running": "running", "paused": "paused"}
"""Docker's other states (`restarting`, `removing`, `exited`, `dead`) have no process that serves."""
_EXIT_CODE = re.compile(r"^Exited \((\d+)\)")


@dataclass(frozen=True, slots=True)
class PodFrame:
    """What every container of a pod is made with, those that are attached later too."""

    installation: str
    pod_id: str
    roles: tuple[str, ...]
    """Of the containers that the pod was started with; the first one owns the network namespace."""
    labels: Mapping[str, str]

    @classmethod
    def of(cls, installation: str, spec: PodSpec) -> Self:
        return cls(installation, spec.pod_id, tuple(container.role for container in spec.containers), spec.labels)

    @property
    def owner(self) -> str:
        return self.roles[0]


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """What the first container of a pod is attached to."""

    name: str
    sysctls: Mapping[str, str]
    address: IPv4Address | None = None
    """The pod's own for as long as it lives; None for any that the engine chooses."""
    dns: tuple[str, ...] = ()
    """Name servers instead of the engine's own; empty for those."""
    dns_options: tuple[str, ...] = ()
    """As in resolv.conf(5)."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where a pod is attached, whether it runs or not."""

    network: str
    address: IPv4Address | None
    """None for a pod that was given none of its own, while it does not run."""

    def is_as(self, wanted: PodNetwork) -> bool:
        return self.network == wanted.name and wanted.address in (None, self.address)


def container_name(pod_id: str, role: str) -> str:
    return f"sandgate-{pod_id}-{role}"


def volume_name(pod_id: str, volume: str) -> str:
    return f"sandgate-{pod_id}-{volume}"


def kept_volume_name(installation: str, volume: str) -> str:
    """Of a volume that outlives pods."""
    return f"sandgate-{installation}-volume-{volume}"


def shared_volume_name(volume: str) -> str:
    """Of a volume that belongs to the whole engine."""
    return f"sandgate-{volume}"


def lasting_volume_name(installation: str, mount: VolumeMount) -> str:
    return shared_volume_name(mount.volume) if mount.shared else kept_volume_name(installation, mount.volume)


def label_filter(installation: str, pod_id: str | None = None) -> dict[str, list[str]]:
    labels = [f"{INSTALLATION_LABEL}={installation}"]
    labels.append(f"{POD_LABEL}={pod_id}" if pod_id else POD_LABEL)
    return {"label": labels}


def container_labels(frame: PodFrame, role: str) -> dict[str, str]:
    return {
        INSTALLATION_LABEL: frame.installation,
        POD_LABEL: frame.pod_id,
        ROLE_LABEL: role,
        ROLES_LABEL: ",".join(frame.roles),
        **{f"{SPEC_LABEL_PREFIX}{name}": value for name, value in frame.labels.items()},
    }


def container_arguments(
    frame: PodFrame, container: ContainerSpec, *, image_config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Keyword arguments of `APIClient.create_container`, but for `host_config`.

    `image_config` is the image's `Config`; needed only with an `entrypoint_prefix`.
    """
    entrypoint: list[str] | None = None
    command = None if container.command is None else list(container.command)
    if container.entrypoint_prefix:
        config = image_config or {}
        entrypoint = [*container.entrypoint_prefix, *(config.get("Entrypoint") or ())]
        # An entrypoint given at creation makes Docker forget the image's command.
        command = list(config.get("Cmd") or ()) if command is None else command
    return {
        "image": container.image,
        "name": container_name(frame.pod_id, container.role),
        "command": command,
        "entrypoint": entrypoint,
        "environment": dict(container.env),
        "user": container.user,
        # Containers that join a namespace take its host name and may not set one.
        "hostname": "sandbox" if container.role == frame.owner else None,
        "labels": container_labels(frame, container.role),
        # The operator's own proxy settings, which may hold credentials, stay out.
        "use_config_proxy": False,
    }


def networking_arguments(network: PodNetwork) -> dict[str, Any]:
    """Keyword arguments of `APIClient.create_container` for the first container of a pod."""
    if network.address is None:
        return {}
    endpoint = {"IPAMConfig": {"IPv4Address": str(network.address)}}
    return {"networking_config": {"EndpointsConfig": {network.name: endpoint}}}


def host_arguments(
    frame: PodFrame, container: ContainerSpec, *, network: PodNetwork | None, runtime: str | None
) -> dict[str, Any]:
    """Keyword arguments of `APIClient.create_host_config`. `network` is needed for the first container of the pod."""
    if container.role == frame.owner and network is not None:
        attachment = attachment_arguments(network)
    elif container.has_network:
        # By name, which is known before the owner is made, and as good as its id: a new owner means a new pod.
        attachment = {"network_mode": f"container:{container_name(frame.pod_id, frame.owner)}"}
    else:
        attachment = {"network_mode": "none"}
    if container.role not in frame.roles:
        attachment["restart_policy"] = {"Name": "on-failure"}
    return {
        **attachment,
        **confinement(container.limits, container.capabilities, new_privileges=container.new_privileges),
        "runtime": runtime,
        "log_config": LogConfig(type="json-file", config={"max-size": "1m", "max-file": "2"}),
        "mounts": [_pod_volume(frame, volume, path) for volume, path in container.volumes.items()]
        + [_pod_volume(frame, volume, path, read_only=True) for volume, path in container.read_only_volumes.items()]
        + [
            Mount(
                target=mount.path,
                source=lasting_volume_name(frame.installation, mount),
                type="volume",
                no_copy=True,
                read_only=mount.read_only,
            )
            for mount in container.mounts
        ],
    }


def _pod_volume(frame: PodFrame, volume: str, path: str, *, read_only: bool = False) -> Mount:
    """Docker makes the volume with the first container that names it, so a volume of no container is a leftover."""
    return Mount(
        target=path,
        source=volume_name(frame.pod_id, volume),
        type="volume",
        no_copy=True,
        read_only=read_only,
        labels={INSTALLATION_LABEL: frame.installation, POD_LABEL: frame.pod_id},
        driver_config=DriverConfig("local", _VOLUME_OPTIONS),
    )


def attachment_arguments(network: PodNetwork) -> dict[str, Any]:
    """Arguments of `create_host_config` for a container with a network namespace of its own."""
    return {
        "network_mode": network.name,
        "sysctls": dict(network.sysctls),
        "dns": list(network.dns),
        "dns_opt": list(network.dns_options),
    }


def confinement(limits: Limits, capabilities: Iterable[str], *, new_privileges: bool) -> dict[str, Any]:
    """Arguments of `create_host_config` that hold for whatever runs code which is not ours."""
    memory = limits.memory_mib * _MIB
    return {
        "init": True,
        "cap_drop": ["ALL"],
        "cap_add": list(capabilities),
        "security_opt": [] if new_privileges else ["no-new-privileges"],
        "mem_limit": memory,
        "memswap_limit": memory,
        # A quota, because Docker refuses `NanoCpus` above the number of CPUs of its host.
        "cpu_period": _CPU_PERIOD_US,
        "cpu_quota": int(limits.cpus * _CPU_PERIOD_US),
        "cpu_shares": limits.cpu_shares,
        "pids_limit": limits.pids,
        "shm_size": _SHARED_MEMORY,
    }


def archive(files: Iterable[File]) -> bytes:
    """A tar of `files` relative to `/`. Directories that are absent are made by Docker, owned by root, mode 0755."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in files:
            entry = tarfile.TarInfo(file.path.lstrip("/"))
            entry.size = len(file.content)
            entry.mode = file.mode
            entry.uid = entry.gid = file.uid
            tar.addfile(entry, io.BytesIO(file.content))
    return buffer.getvalue()


def pods_from_listing(listing: Sequence[Mapping[str, Any]]) -> dict[str, Pod]:
    """Pods by id from the answer of `GET /containers/json`. Containers without our labels are passed over."""
    members: dict[str, dict[str, Mapping[str, Any]]] = {}
    for item in listing:
        labels = item["Labels"] or {}
        if POD_LABEL in labels and ROLE_LABEL in labels:
            members.setdefault(labels[POD_LABEL], {})[labels[ROLE_LABEL]] = item
    return {pod_id: _pod(pod_id, by_role) for pod_id, by_role in members.items()}


def attachments(listing: Sequence[Mapping[str, Any]]) -> dict[str, Attachment]:
    """By pod id, of pods whose first container is in the answer of `GET /containers/json`."""
    return {
        item["Labels"][POD_LABEL]: Attachment(network, _own_address(endpoint))
        for item in listing
        if (item["Labels"] or {}).get(ROLE_LABEL) == (item["Labels"] or {}).get(ROLES_LABEL, "").split(",")[0]
        for network, endpoint in (item["NetworkSettings"]["Networks"] or {}).items()
    }


def frame_from_listing(installation: str, listing: Sequence[Mapping[str, Any]]) -> PodFrame | None:
    """Of the one pod whose containers these are; None unless there are any."""
    labels = next((item["Labels"] for item in listing if ROLES_LABEL in (item["Labels"] or {})), None)
    if labels is None:
        return None
    return PodFrame(installation, labels[POD_LABEL], tuple(labels[ROLES_LABEL].split(",")), _spec_labels(labels))


def volumes_of(item: Mapping[str, Any]) -> list[str]:
    """Names of the volumes of a container in the answer of `GET /containers/json`."""
    return [mount["Name"] for mount in item["Mounts"] if mount["Type"] == "volume"]


def _own_address(endpoint: Mapping[str, Any]) -> IPv4Address | None:
    address = (endpoint["IPAMConfig"] or {}).get("IPv4Address") or endpoint["IPAddress"]
    return IPv4Address(address) if address else None


def _pod(pod_id: str, by_role: Mapping[str, Mapping[str, Any]]) -> Pod:
    labels = next(iter(by_role.values()))["Labels"]
    roles = labels.get(ROLES_LABEL, "").split(",")
    attached = sorted(by_role.keys() - set(roles))
    owner = by_role.get(roles[0])
    return Pod(
        pod_id=pod_id,
        labels=_spec_labels(labels),
        address=_address(owner) if owner else None,
        containers=tuple(
            _status(role, by_role.get(role), is_attached=role in attached) for role in (*roles, *attached)
        ),
    )


def _spec_labels(labels: Mapping[str, str]) -> dict[str, str]:
    return {k.removeprefix(SPEC_LABEL_PREFIX): v for k, v in labels.items() if k.startswith(SPEC_LABEL_PREFIX)}


def _status(role: str, item: Mapping[str, Any] | None, *, is_attached: bool) -> ContainerStatus:
    if item is None:
        return ContainerStatus(role=role, state="absent")
    state = _STATES.get(item["State"], "exited")
    exit_code = _EXIT_CODE.match(item["Status"]) if state == "exited" else None
    code = int(exit_code[1]) if exit_code else None
    return ContainerStatus(role=role, state=state, exit_code=code, is_attached=is_attached)


def _address(owner: Mapping[str, Any]) -> str | None:
    if owner["State"] != "running":
        return None
    networks = owner["NetworkSettings"]["Networks"] or {}
    return next((network["IPAddress"] for network in networks.values() if network["IPAddress"]), None)


def pinned_name(image: str, found: Mapping[str, Any]) -> str | None:
    """How to name an image for good that `GET /images/<image>/json` has `found`."""
    identifier: str = found["Id"]
    # The engine also finds an image by a part of its id.
    if identifier.removeprefix("sha256:").startswith(image):
        return None
    repository, _, _ = image.partition("@")
    head, colon, tag = repository.rpartition(":")
    if colon and "/" not in tag:
        repository = head
    digests = [name for name in found["RepoDigests"] or () if name.partition("@")[0] == repository]
    return image if image in digests else next(iter(digests), identifier)
