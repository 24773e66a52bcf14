"""Runs beside pods without containers: coroutines that write to a keeper and end with an exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from app.engines.runs import EndedBy, OutputKeeper, RunOutcome, RunSpec
from app.errors import EngineError

Program: TypeAlias = Callable[[RunSpec, OutputKeeper], Coroutine[Any, Any, int]]


async def _print_arguments(spec: RunSpec, output: OutputKeeper) -> int:
    output.take(stdout=" ".join(spec.command or ()).encode())
    return 0


class InMemoryRuns:
    def __init__(self) -> None:
        self.program: Program = _print_arguments
        """What every run does from now on."""
        self.started: list[RunSpec] = []
        self.running: dict[asyncio.Task[int], str] = {}
        """Runs under way -> their pods."""

    async def run(self, pod_id: str, spec: RunSpec) -> RunOutcome:
        output = OutputKeeper(spec)
        exit_code: int | None = None
        ended_by: EndedBy = "itself"
        self.started.append(spec)
        task = asyncio.create_task(self.program(spec, output), name=f"run {spec.image}")
        self.running[task] = pod_id
        try:
            async with asyncio.timeout(spec.timeout_s):
                await asyncio.wait([task])
            if task.cancelled():
                raise EngineError(f"The run of {spec.image} was ended with what it ran for.")
            exit_code = task.result()
        except TimeoutError:
            exit_code, ended_by = 137, "time-out"
        finally:
            task.cancel()
            del self.running[task]
        return output.outcome(exit_code, ended_by)

    def end(self, pod_id: str) -> None:
        """Have what runs beside a pod fail."""
        for task, pod in self.running.items():
            if pod == pod_id:
                task.cancel()
