"""Jobs on Docker: what confines them, what ends them, and what is left."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import docker
import pytest
from docker.types import Mount

from app.engines.docker_pods import INSTALLATION_LABEL, shared_volume_name
from app.engines.interface import File, Limits
from app.engines.jobs import JobSpec
from tests.engine.subjects import DockerSubject

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="session")]


def job(image: str, script: str, *, timeout_s: int = 30) -> JobSpec:
    return JobSpec(
        name=f"test-{uuid.uuid4().hex[:8]}",
        image=image,
        command=("sh", "-c", script),
        limits=Limits(memory_mib=128, cpus=1, pids=64),
        timeout_s=timeout_s,
        files=(File(path="/run/sandgate/note", content=b"to_the_job\n"),),
        shared={},
    )


async def _jobs_left(api: docker.APIClient, spec: JobSpec) -> list[str]:
    listed = await asyncio.to_thread(api.containers, all=True, filters={"label": f"sandgate.job={spec.name}"})
    return [item["Names"][0] for item in listed]


async def test_a_job_has_its_files_no_capabilities_and_leaves_no_container(docker_subject: DockerSubject) -> None:
    spec = job(docker_subject.image, "cat /run/sandgate/note; grep -E 'CapEff|NoNewPrivs' /proc/self/status; id -u")
    outcome = await docker_subject.engine.jobs.run(spec, lambda line: None)
    assert outcome.output.split() == ["to_the_job", "CapEff:", "0000000000000000", "NoNewPrivs:", "1", "0"]
    assert await _jobs_left(docker_subject.api, spec) == []


async def test_a_job_ends_at_its_time_out_by_itself(docker_subject: DockerSubject) -> None:
    outcome = await docker_subject.engine.jobs.run(
        job(docker_subject.image, "sleep 60", timeout_s=1), lambda line: None
    )
    assert outcome.exit_code == 124


async def test_a_job_is_no_pod(docker_subject: DockerSubject) -> None:
    spec = job(docker_subject.image, "echo begun; sleep 600", timeout_s=600)
    began = asyncio.Event()
    running = asyncio.create_task(docker_subject.engine.jobs.run(spec, lambda line: began.set()))
    await began.wait()
    assert await docker_subject.engine.observe() == {}
    await docker_subject.engine.jobs.remove_all()
    assert (await running).exit_code is None
    assert await _jobs_left(docker_subject.api, spec) == []


async def test_who_else_has_a_shared_volume_is_told(docker_subject: DockerSubject) -> None:
    volume = f"test-{uuid.uuid4().hex[:8]}"
    jobs = docker_subject.engine.jobs
    spec = replace(job(docker_subject.image, "touch /data/note"), shared={volume: "/data"})
    await jobs.run(spec, lambda line: None)
    assert await jobs.others_using(volume) == frozenset()
    name = shared_volume_name(volume)

    def hold(installation: str, *, job: bool) -> str:
        host = docker_subject.api.create_host_config(mounts=[Mount(target="/data", source=name, type="volume")])
        labels = {INSTALLATION_LABEL: installation, **({"sandgate.job": "any"} if job else {})}
        made = docker_subject.api.create_container(docker_subject.image, ["true"], labels=labels, host_config=host)
        docker_subject.api.start(made["Id"])
        docker_subject.api.wait(made["Id"])
        return str(made["Id"])

    containers = [
        await asyncio.to_thread(hold, "another-home", job=False),
        await asyncio.to_thread(hold, "a-third-home", job=True),
    ]
    try:
        assert await jobs.others_using(volume) == {"another-home"}
    finally:
        for container in containers:
            await asyncio.to_thread(docker_subject.api.remove_container, container)
        await asyncio.to_thread(docker_subject.api.remove_volume, name)


async def test_a_job_that_ended_with_nobody_there_is_removed_after_a_while(docker_subject: DockerSubject) -> None:
    jobs = docker_subject.engine.jobs

    async def give_up(spec: JobSpec) -> None:
        began = asyncio.Event()
        waiting = asyncio.create_task(jobs.run(spec, lambda line: began.set()))
        await began.wait()
        waiting.cancel()
        await asyncio.wait([waiting])

    ending = job(docker_subject.image, "echo begun; sleep 1")
    going_on = job(docker_subject.image, "echo begun; sleep 60")
    await give_up(ending)
    await give_up(going_on)
    await asyncio.to_thread(docker_subject.api.wait, f"sandgate-job-{ending.name}")

    await docker_subject.engine.remove_lost()
    assert len(await _jobs_left(docker_subject.api, ending)) == 1
    await jobs.remove_lost(older_than_s=0)
    assert await _jobs_left(docker_subject.api, ending) == []
    assert len(await _jobs_left(docker_subject.api, going_on)) == 1
    await jobs.remove_all()
