"""Paths of the host that an operator allows: only through a volume of the engine, only in definitions of their own."""

from __future__ import annotations

from pathlib import Path

from app.catalog import Catalog
from app.engines.interface import VolumeMount
from tests.unit.plans import plan

KUBERNETES = """
name: kubernetes
title: Kubernetes
type: server
image: mcp/kubernetes
volumes: [cache:/cache]
operatorVolumes: [kube:/home/appuser/.kube:ro, out:/out]
"""


def test_a_definition_of_the_operators_own_mounts_volumes_that_the_operator_made(tmp_path: Path) -> None:
    (tmp_path / "kubernetes.yaml").write_text(KUBERNETES)
    planned = plan(Catalog.load(tmp_path), template="mcp-gateway", mcp={"kubernetes": {}})
    assert planned.gateway is not None
    server = planned.gateway.image_servers["kubernetes"]
    assert server.mounts == (
        VolumeMount(volume="own-kube", path="/home/appuser/.kube", read_only=True, shared=True),
        VolumeMount(volume="own-out", path="/out", shared=True),
    )
    assert server.volumes == {"server-0-cache": "/cache"}
