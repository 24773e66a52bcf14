"""The engines that the contract is tested on, each with a way to do to its pods what happens to them in life."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import docker

from app.engines.docker_engine import DockerEngine
from app.engines.docker_pods import container_name
from app.engines.in_memory_engine import InMemoryEngine
from app.engines.interface import ContainerSpec, Engine, Limits, Pod, PodSpec
from tests.waiting import BOUND_S

LINES = ("first line", "second line", "third line")
"""What the program of every container under test prints."""

PROGRAM = (
    "sh",
    "-c",
    "printf '%s\\n' 'first line' 'second line' 'third line'; "
    "while ! test -e /tmp/exit; do sleep 0.05; done; exit $(cat /tmp/exit)",
)
"""Runs until `/tmp/exit` holds an exit code."""


class Subject(Protocol):
    engine: Engine
    image: str
    """An image that is there, with Debian's `/etc/debian_version` in it."""

    async def exit_container(self, pod_id: str, role: str, *, exit_code: int) -> None: ...

    async def remove_container(self, pod_id: str, role: str) -> None: ...

    async def speak(self, pod_id: str, role: str) -> None:
        """Returns once the container has printed LINES."""
        ...


@dataclass
class InMemorySubject:
    engine: InMemoryEngine
    image: str

    async def exit_container(self, pod_id: str, role: str, *, exit_code: int) -> None:
        self.engine.exit_container(pod_id, role, exit_code=exit_code)

    async def remove_container(self, pod_id: str, role: str) -> None:
        self.engine.remove_container(pod_id, role)

    async def speak(self, pod_id: str, role: str) -> None:
        for line in LINES:
            self.engine.write_log(pod_id, role, line)


@dataclass
class DockerSubject:
    engine: DockerEngine
    image: str
    installation: str
    api: docker.APIClient

    async def exit_container(self, pod_id: str, role: str, *, exit_code: int) -> None:
        await self.run(pod_id, role, ["sh", "-c", f"echo {exit_code} > /tmp/exit.new; mv /tmp/exit.new /tmp/exit"])

        async def has_exited() -> bool:
            pod = (await self.engine.observe())[pod_id]
            return any(status.role == role and status.state == "exited" for status in pod.containers)

        await until(has_exited)

    async def remove_container(self, pod_id: str, role: str) -> None:
        await asyncio.to_thread(self.api.remove_container, container_name(pod_id, role), force=True)

    async def speak(self, pod_id: str, role: str) -> None:
        async def has_spoken() -> bool:
            return LINES[-1] in await self.engine.logs(pod_id, role, tail=10)

        await until(has_spoken)

    async def run(self, pod_id: str, role: str, command: Sequence[str], *, user: str = "") -> tuple[int, str]:
        """Run a command in a container; gives its exit code and its output."""

        def execute() -> tuple[int, str]:
            execution = self.api.exec_create(container_name(pod_id, role), list(command), user=user)["Id"]
            output = self.api.exec_start(execution)
            return self.api.exec_inspect(execution)["ExitCode"], output.decode()

        return await asyncio.to_thread(execute)

    async def output_of(self, pod_id: str, role: str, *command: str, user: str = "") -> str:
        code, output = await self.run(pod_id, role, command, user=user)
        assert code == 0, output
        return output.strip()

    async def python(self, pod_id: str, role: str, program: str) -> str:
        return await self.output_of(pod_id, role, "python3", "-c", program)

    async def inspect(self, pod_id: str, role: str) -> dict[str, Any]:
        answer: dict[str, Any] = await asyncio.to_thread(self.api.inspect_container, container_name(pod_id, role))
        return answer

    async def leftovers(self, pod_id: str) -> list[str]:
        """Names of all containers and volumes of a pod, as the engine itself lists them."""
        filters = {"label": f"sandgate.pod={pod_id}"}
        containers = await asyncio.to_thread(self.api.containers, all=True, filters=filters)
        volumes = await asyncio.to_thread(self.api.volumes, filters=filters)
        return [item["Names"][0] for item in containers] + [item["Name"] for item in volumes["Volumes"] or ()]


def container(image: str, role: str = "only", **more: Any) -> ContainerSpec:
    small = Limits(memory_mib=128, cpus=1, pids=64)
    return replace(ContainerSpec(role=role, image=image, limits=small, command=PROGRAM), **more)


def pod(pod_id: str, *containers: ContainerSpec, **more: Any) -> PodSpec:
    return PodSpec(pod_id=pod_id, containers=containers, **more)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again until it holds; fails after 20 s."""
    give_up_at = time.monotonic() + BOUND_S
    while not await holds():
        assert time.monotonic() < give_up_at, "it did not come true"
        await asyncio.sleep(0)


def states(pod: Pod) -> dict[str, str]:
    return {status.role: status.state for status in pod.containers}
