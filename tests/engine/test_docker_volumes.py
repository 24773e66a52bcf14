"""Volumes that outlive pods, on Docker: who may write, and what an uninstall takes along."""

from __future__ import annotations

import asyncio
import os

import docker
import pytest

from app.engines.docker_engine import DockerEngine
from app.engines.interface import VolumeMount
from tests.engine.subjects import DockerSubject, container, pod

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="session")]

DATA = VolumeMount(volume="data", path="/data")


async def test_what_any_user_wrote_is_seen_in_other_pods_and_after_them(docker_subject: DockerSubject) -> None:
    engine, image = docker_subject.engine, docker_subject.image
    await engine.create_volume("data")
    try:
        await engine.start(pod("writer", container(image, mounts=(DATA,))))
        await engine.start(
            pod("reader", container(image, mounts=(VolumeMount(volume="data", path="/d", read_only=True),)))
        )
        await docker_subject.output_of("writer", "only", "sh", "-c", "echo hello > /data/note", user="1234:1234")
        assert await docker_subject.output_of("reader", "only", "cat", "/d/note") == "hello"
        code, output = await docker_subject.run("reader", "only", ["touch", "/d/more"])
        assert (code, "Read-only" in output) == (1, True)
        await engine.stop("writer")
        await engine.stop("reader")
        await engine.start(pod("later", container(image, mounts=(DATA,))))
        assert await docker_subject.output_of("later", "only", "cat", "/data/note") == "hello"
        await engine.stop("later")
    finally:
        await engine.remove_volume("data")


async def test_an_uninstall_keeps_volumes_unless_told_otherwise(base_image: str, docker_api: docker.APIClient) -> None:
    engine = DockerEngine(f"volumes-{os.getpid()}", guard_image=base_image)
    try:
        await engine.create_volume("mine")
        await engine.remove_installation()
        assert await engine.volumes() == {"mine"}
        await engine.remove_installation(with_volumes=True)
        assert await engine.volumes() == frozenset()
        listed = await asyncio.to_thread(docker_api.volumes)
        assert [v["Name"] for v in listed["Volumes"] or () if f"volumes-{os.getpid()}" in v["Name"]] == []
    finally:
        await engine.remove_installation(with_volumes=True)
        await engine.aclose()
