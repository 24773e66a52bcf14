"""What a container is created with, and what is read back from a listing."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from typing import Any

import pytest

from app.engines.docker_pods import (
    PodFrame,
    PodNetwork,
    archive,
    container_arguments,
    container_labels,
    host_arguments,
    pinned_name,
    pods_from_listing,
)
from app.engines.interface import ContainerSpec, ContainerState, ContainerStatus, File, Limits, Pod, PodSpec

_LIMITS = Limits(memory_mib=256, cpus=1.5, pids=100)
_GATEWAY = ContainerSpec(role="gateway", image="gw:1", limits=_LIMITS, volumes={"s": "/run/servers"}, user="0")
_WORKSPACE = ContainerSpec(
    role="workspace",
    image="ws:1",
    limits=_LIMITS,
    command=("run",),
    env={"A": "b"},
    new_privileges=True,
    capabilities=("SETUID",),
)
_SPEC = PodSpec(pod_id="p1", containers=(_GATEWAY, _WORKSPACE), labels={"team": "red"})
_FRAME = PodFrame.of("here", _SPEC)
_NETWORK = PodNetwork("net", {"net.x": "1"}, dns=("127.0.0.1",), dns_options=("timeout:1",))

_LABELS = {
    "sandgate.installation": "here",
    "sandgate.pod": "p1",
    "sandgate.role": "workspace",
    "sandgate.roles": "gateway,workspace",
    "sandgate.label.team": "red",
}


def _listed(role: str, state: str, status: str = "", **more: Any) -> dict[str, Any]:
    networks = {"net": {"IPAddress": "198.18.0.2"}} if role == "gateway" else {}
    return {
        "Labels": {**_LABELS, "sandgate.role": role, "of.the.image": "x"},
        "State": state,
        "Status": status,
        "NetworkSettings": {"Networks": networks},
    } | more


def test_labels_say_whose_what_and_of_how_many() -> None:
    assert container_labels(_FRAME, "workspace") == _LABELS


def test_a_container_is_created_as_its_spec_says() -> None:
    assert container_arguments(_FRAME, _WORKSPACE, image_config=None) == {
        "image": "ws:1",
        "name": "sandgate-p1-workspace",
        "command": ["run"],
        "entrypoint": None,
        "environment": {"A": "b"},
        "user": None,
        "hostname": None,
        "labels": _LABELS,
        "use_config_proxy": False,
    }
    assert container_arguments(_FRAME, _GATEWAY, image_config=None)["hostname"] == "sandbox"


@pytest.mark.parametrize(
    ("command", "config", "entrypoint", "arguments"),
    [
        (None, {"Entrypoint": ["own"], "Cmd": ["x"]}, ["pre", "--", "own"], ["x"]),
        (("given",), {"Entrypoint": ["own"], "Cmd": ["x"]}, ["pre", "--", "own"], ["given"]),
        (None, {"Entrypoint": None, "Cmd": ["bash"]}, ["pre", "--"], ["bash"]),
        (None, {"Entrypoint": ["own"], "Cmd": None}, ["pre", "--", "own"], []),
        ((), {"Entrypoint": ["own"], "Cmd": ["x"]}, ["pre", "--", "own"], []),
    ],
)
def test_a_prefix_keeps_the_images_entrypoint_and_command_behind_it(
    command: tuple[str, ...] | None, config: dict[str, Any], entrypoint: list[str], arguments: list[str]
) -> None:
    container = ContainerSpec(
        role="server-1", image="i", limits=_LIMITS, command=command, entrypoint_prefix=("pre", "--")
    )
    made = container_arguments(_FRAME, container, image_config=config)
    assert (made["entrypoint"], made["command"]) == (entrypoint, arguments)


def test_the_first_container_has_the_network_and_the_others_join_it() -> None:
    owner = host_arguments(_FRAME, _GATEWAY, network=_NETWORK, runtime=None)
    other = host_arguments(_FRAME, _WORKSPACE, network=_NETWORK, runtime=None)
    assert (owner["network_mode"], owner["sysctls"], owner["dns"], owner["dns_opt"]) == (
        "net",
        {"net.x": "1"},
        ["127.0.0.1"],
        ["timeout:1"],
    )
    assert other["network_mode"] == "container:sandgate-p1-gateway"
    assert {"sysctls", "dns", "dns_opt"}.isdisjoint(other)


def test_limits_and_privileges_are_those_of_the_spec() -> None:
    gateway = host_arguments(_FRAME, _GATEWAY, network=_NETWORK, runtime="runsc")
    workspace = host_arguments(_FRAME, _WORKSPACE, network=_NETWORK, runtime="runsc")
    assert (gateway["mem_limit"], gateway["memswap_limit"], gateway["pids_limit"]) == (256 << 20, 256 << 20, 100)
    assert (gateway["cpu_period"], gateway["cpu_quota"], gateway["cpu_shares"]) == (100_000, 150_000, 1024)
    assert (gateway["cap_drop"], gateway["cap_add"], gateway["security_opt"]) == (["ALL"], [], ["no-new-privileges"])
    assert (workspace["cap_add"], workspace["security_opt"], workspace["runtime"]) == (["SETUID"], [], "runsc")


def test_a_volume_is_in_memory_writable_by_all_and_known_as_the_pods() -> None:
    (mount,) = host_arguments(_FRAME, _GATEWAY, network=_NETWORK, runtime=None)["mounts"]
    assert mount == {
        "Type": "volume",
        "Source": "sandgate-p1-s",
        "Target": "/run/servers",
        "ReadOnly": False,
        "VolumeOptions": {
            "NoCopy": True,
            "Labels": {"sandgate.installation": "here", "sandgate.pod": "p1"},
            "DriverConfig": {
                "Name": "local",
                "Options": {"type": "tmpfs", "device": "tmpfs", "o": "mode=1777,size=64m"},
            },
        },
    }


def test_a_volume_of_the_pod_can_be_for_reading_only() -> None:
    server = ContainerSpec(role="server-0", image="i", limits=_LIMITS, read_only_volumes={"s": "/run/sandgate"})
    (mount,) = host_arguments(_FRAME, server, network=None, runtime=None)["mounts"]
    (writable,) = host_arguments(_FRAME, _GATEWAY, network=_NETWORK, runtime=None)["mounts"]
    assert mount == writable | {"Target": "/run/sandgate", "ReadOnly": True}


def test_an_archive_holds_files_alone_with_owner_and_mode() -> None:
    packed = archive([File(path="/run/a/token", content=b"t"), File(path="/etc/b", content=b"", mode=0o644, uid=7)])
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        found = [(entry.name, entry.isfile(), entry.mode, entry.uid, entry.gid, entry.size) for entry in tar]
    assert found == [("run/a/token", True, 0o400, 0, 0, 1), ("etc/b", True, 0o644, 7, 7, 0)]


def test_a_pod_is_read_back_with_its_own_labels_and_address() -> None:
    listing = [_listed("workspace", "running"), _listed("gateway", "running")]
    assert pods_from_listing(listing) == {
        "p1": Pod(
            pod_id="p1",
            labels={"team": "red"},
            address="198.18.0.2",
            containers=(
                ContainerStatus(role="gateway", state="running"),
                ContainerStatus(role="workspace", state="running"),
            ),
        )
    }


@pytest.mark.parametrize(
    ("state", "status", "seen"),
    [
        ("created", "Created", ("created", None)),
        ("paused", "Up 2 minutes (Paused)", ("paused", None)),
        ("exited", "Exited (137) 3 seconds ago", ("exited", 137)),
        ("exited", "Exited (0) 2 hours ago", ("exited", 0)),
        ("dead", "Dead", ("exited", None)),
        ("removing", "Removal In Progress", ("exited", None)),
        ("restarting", "Restarting (1) 5 seconds ago", ("exited", None)),
    ],
)
def test_each_state_of_docker_has_one_of_ours(state: str, status: str, seen: tuple[ContainerState, int | None]) -> None:
    pod = pods_from_listing([_listed("gateway", state, status), _listed("workspace", "running")])["p1"]
    assert (pod.containers[0].state, pod.containers[0].exit_code) == seen
    assert pod.address is None
    assert not pod.is_running


def test_what_is_missing_of_a_pod_is_absent() -> None:
    pod = pods_from_listing([_listed("workspace", "running")])["p1"]
    assert pod.containers == (
        ContainerStatus(role="gateway", state="absent"),
        ContainerStatus(role="workspace", state="running"),
    )
    assert pod.address is None


def test_containers_of_others_are_passed_over() -> None:
    assert pods_from_listing([{"Labels": None}, {"Labels": {"sandgate.installation": "here"}}]) == {}


def test_an_attached_container_is_told_from_the_pods_own() -> None:
    (pod,) = pods_from_listing([_listed("server-3", "running"), _listed("gateway", "running")]).values()
    assert [(seen.role, seen.state, seen.is_attached) for seen in pod.containers] == [
        ("gateway", "running", False),
        ("workspace", "absent", False),
        ("server-3", "running", True),
    ]


def test_an_attached_container_is_started_again_and_may_be_without_any_network() -> None:
    alone = ContainerSpec(role="server-3", image="i", limits=_LIMITS, has_network=False)
    made = host_arguments(_FRAME, alone, network=None, runtime=None)
    assert (made["network_mode"], made["restart_policy"]) == ("none", {"Name": "on-failure"})
    joined = host_arguments(_FRAME, replace(alone, has_network=True), network=None, runtime=None)
    assert joined["network_mode"] == "container:sandgate-p1-gateway"


@pytest.mark.parametrize(
    ("image", "digests", "pinned"),
    [
        ("acme/shot:1", ["acme/shot@sha256:d1"], "acme/shot@sha256:d1"),
        ("acme/shot@sha256:d1", ["acme/shot@sha256:d0", "acme/shot@sha256:d1"], "acme/shot@sha256:d1"),
        ("host:5000/shot", ["other/shot@sha256:d1"], "sha256:abc123"),
        ("built-here:1", None, "sha256:abc123"),
        ("abc", [], None),
    ],
)
def test_an_image_is_pinned_by_its_digest_or_its_id(image: str, digests: list[str] | None, pinned: str | None) -> None:
    assert pinned_name(image, {"Id": "sha256:abc123", "RepoDigests": digests}) == pinned
