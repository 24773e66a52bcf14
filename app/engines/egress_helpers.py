"""The two containers that keep single pods to their rules: one sets packet filter rules, one is the egress proxy."""

from __future__ import annotations

import hashlib
from pathlib import Path

import docker

from app.engines.docker_client import DockerClient
from app.engines.interface import File
from app.engines.network_guard import HTTP_DIVERSION_PORT, TLS_DIVERSION_PORT, GuardNames
from app.engines.resident_helper import Resident, ResidentHelper, on_host_arguments
from app.settings import ROOT

_SET_RULES = """
while read -r number rules; do
    if problem=$(printf '%s' "$rules" | nft -f - 2>&1); then
        echo "$number ok"
    else
        echo "$number $(printf '%s' "$problem" | head -n 1 | cut -c 1-300)"
    fi
done
"""
"""nft carries out the rules of a line as one transaction."""

_PROXY_SOURCE = ROOT / "sandbox_images" / "egress"
_PROXY_FOLDER = "/opt/sandgate/egress"
_KEPT_IN = "/tmp/sandgate-egress.json"


def make_packet_filter(client: DockerClient, installation: str, image: str) -> ResidentHelper:
    def make(api: docker.APIClient) -> Resident:
        arguments = on_host_arguments(
            api,
            entrypoint=["/bin/sh", "-uc", _SET_RULES],
            user="0:0",
            capabilities=["NET_ADMIN"],
            read_only=True,
            mem_limit="128m",
            pids_limit=64,
        )
        return Resident(_version(image, _SET_RULES), arguments)

    return ResidentHelper(client, installation, "packet-filter", image=image, make=make)


def make_proxy(client: DockerClient, installation: str, image: str, names: GuardNames) -> ResidentHelper:
    def make(api: docker.APIClient) -> Resident:
        gateway = api.inspect_network(names.egress_network)["IPAM"]["Config"][0]["Gateway"]
        files = tuple(_program(_PROXY_SOURCE))
        entrypoint = [
            *("python3", "-IB", _PROXY_FOLDER, "--address", gateway, "--kept-in", _KEPT_IN),
            *("--http-port", str(HTTP_DIVERSION_PORT), "--tls-port", str(TLS_DIVERSION_PORT)),
        ]
        arguments = on_host_arguments(
            api,
            entrypoint=entrypoint,
            user=f"{names.proxy_uid}:{names.proxy_uid}",
            capabilities=[],
            restart_policy={"Name": "on-failure"},
            mem_limit="512m",
            pids_limit=256,
        )
        content = b"".join(file.path.encode() + file.content for file in files)
        return Resident(_version(image, repr(entrypoint), content.hex()), arguments, files)

    return ResidentHelper(client, installation, "egress-proxy", image=image, make=make)


def _program(source: Path) -> list[File]:
    return [
        File(path=f"{_PROXY_FOLDER}/{path.relative_to(source).as_posix()}", content=path.read_bytes(), mode=0o444)
        for path in sorted(source.rglob("*.py"))
    ]


def _version(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
