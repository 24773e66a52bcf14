"""Jobs without containers: coroutines, of which at most one of a name runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Mapping
from typing import TypeAlias

from app.engines.jobs import JobOutcome, JobSpec, Report
from app.errors import ImageMissing

Program: TypeAlias = Callable[[JobSpec, Report], Awaitable[JobOutcome]]


async def _succeed(spec: JobSpec, report: Report) -> JobOutcome:
    report("done")
    return JobOutcome(exit_code=0, output="done\n")


class InMemoryJobs:
    def __init__(self, images: Container[str], answer: Callable[[str], Awaitable[None]]) -> None:
        """`answer` is awaited first by every verb, with what is being done."""
        self.program: Program = _succeed
        """What every job does from now on."""
        self.started: list[JobSpec] = []
        self.shared: dict[str, dict[str, bytes]] = {}
        """Shared volume -> its files by path."""
        self.others: set[str] = set()
        """Other installations that use shared volumes."""
        self._images = images
        self._answer = answer
        self._running: dict[str, asyncio.Task[JobOutcome]] = {}
        """By name; one that has failed stays until somebody is told."""

    async def run(self, spec: JobSpec, report: Report) -> JobOutcome:
        await self._answer(f"run job {spec.name}")
        if spec.image not in self._images:
            raise ImageMissing(spec.image)
        task = self._running.get(spec.name)
        if task is None:
            self.started.append(spec)
            task = asyncio.create_task(self._run(spec, report), name=f"job {spec.name}")
            self._running[spec.name] = task
            task.add_done_callback(lambda task: None if _has_failed(task) else self._forget(spec.name, task))
        outcome = await asyncio.shield(task)
        self._forget(spec.name, task)
        return outcome

    async def others_using(self, volume: str) -> frozenset[str]:
        await self._answer(f"see who uses volume {volume}")
        return frozenset(self.others)

    async def read_shared(self, volume: str, directory: str) -> Mapping[str, bytes]:
        await self._answer(f"read {directory} of volume {volume}")
        inside = f"{directory}/"
        files = self.shared.get(volume, {})
        return {path.removeprefix(inside): content for path, content in files.items() if path.startswith(inside)}

    def _forget(self, name: str, task: asyncio.Task[JobOutcome]) -> None:
        if self._running.get(name) is task:
            del self._running[name]

    async def _run(self, spec: JobSpec, report: Report) -> JobOutcome:
        async with asyncio.timeout(spec.timeout_s):
            return await self.program(spec, report)


def _has_failed(task: asyncio.Task[JobOutcome]) -> bool:
    return not task.cancelled() and task.exception() is None and task.result().exit_code != 0
