"""What a process leaves on a real engine that is killed while it tries servers, and who takes it away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import docker
import pytest
from typer.testing import CliRunner

from app.cli import app
from app.engines.docker_engine import DockerEngine
from app.engines.interface import ContainerSpec, Limits, PodSpec
from app.home import HomeError, trials_locked
from app.main import installation_name, sandbox_images
from app.server_jobs import opened_trials, remove_trials
from app.settings import Settings, read_settings

pytestmark = pytest.mark.docker


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a home of its own."""
    monkeypatch.setenv("SANDGATE_HOME", str(tmp_path))
    return read_settings()


@pytest.fixture
async def left(settings: Settings) -> AsyncIterator[DockerEngine]:
    """The installation of trials with a pod, as nobody has it any more."""
    image = sandbox_images(settings).base
    engine = DockerEngine(f"{installation_name(settings.home)}-verify", guard_image=image)
    limits = Limits(memory_mib=64, cpus=0.5, pids=32)
    container = ContainerSpec(role="only", image=image, limits=limits, entrypoint_prefix=("sleep", "600"))
    try:
        await engine.prepare()
        await engine.start(PodSpec(pod_id="left", containers=(container,)))
        yield engine
    finally:
        await engine.remove_installation()
        await engine.aclose()


def networks_of(settings: Settings) -> list[str]:
    client = docker.from_env()
    try:
        names = [str(network.name) for network in client.networks.list()]
        return [name for name in names if installation_name(settings.home) in name]
    finally:
        client.close()


async def test_trials_begin_and_end_with_nothing_of_earlier_ones(settings: Settings, left: DockerEngine) -> None:
    async with opened_trials(settings) as tools:
        assert await tools.engine.observe() == {}
        with pytest.raises(HomeError, match="is trying servers"):
            await remove_trials(settings)
    assert await asyncio.to_thread(networks_of, settings) == []


async def test_an_uninstall_takes_what_killed_trials_left(settings: Settings, left: DockerEngine) -> None:
    assert await asyncio.to_thread(networks_of, settings) != []
    with trials_locked(settings.home):
        refused = await asyncio.to_thread(CliRunner().invoke, app, ["uninstall"])
        assert isinstance(refused.exception, HomeError)
    assert await left.observe() != {}
    result = await asyncio.to_thread(CliRunner().invoke, app, ["uninstall"])
    assert result.exit_code == 0, result.output
    assert await left.observe() == {}
    assert await asyncio.to_thread(networks_of, settings) == []
