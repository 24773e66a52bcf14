"""Many live sandboxes at once, each with an agent and a gateway: what one of them takes, and what all of them cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

from tests.bench.bed import NO_POOL, Bed
from tests.bench.processes import SandboxProcesses, cpu_ms, pss_mib, rss_mib
from tests.bench.results import Row, Section

LEVELS = (10, 100)
MOST = 300
IDLE_S = 5.0

_AT_ONCE = 4
_TRIES = 5


def measure(bed: Bed, *, levels: Sequence[int], budget_s: float) -> Iterator[Section]:
    """A level that the budget leaves no time for is left out, and the table says so."""
    bed.set_pool(NO_POOL)
    ends_at = time.monotonic() + budget_s
    live: list[dict[str, Any]] = []
    rows: list[Row] = []
    notes: list[str] = []
    try:
        for level in levels:
            began, before = time.monotonic(), len(live)
            _grow(bed, live, level - _TRIES, ends_at)
            if len(live) < level - _TRIES:
                notes.append(f"{level} live sandboxes were not reached in the time there was: {len(live)} were.")
                break
            rate = (len(live) - before) / (time.monotonic() - began)
            rows += _at(bed, live, level, rate)
    finally:
        with ThreadPoolExecutor(2 * _AT_ONCE) as threads:
            list(threads.map(lambda sandbox: bed.kill(sandbox["sandboxID"]), live))
    yield Section("Growth: live sandboxes with an agent and a gateway each, no MCP server", tuple(rows), tuple(notes))


def _grow(bed: Bed, live: list[dict[str, Any]], count: int, ends_at: float) -> None:
    def one(_: int) -> None:
        if time.monotonic() < ends_at:
            live.append(bed.create(mcp={}))

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(one, range(count - len(live))))


def _at(bed: Bed, live: list[dict[str, Any]], level: int, rate: float) -> list[Row]:
    creates: list[float] = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        live.append(bed.create(mcp={}))
        creates.append((time.perf_counter() - began) * 1000)
    pods = [bed.processes_of(sandbox) for sandbox in live]
    programs = [pid for pod in pods for pid in (pod.agent, pod.gateway)]
    busy = _busy(bed, pods)
    count = len(live)
    return [
        Row(f"{level} live: agent + gateway, PSS, each sandbox", pss_mib(programs) / count, "MiB", target="≤ 45 MB"),
        Row("· with the containers' inits", pss_mib(pid for pod in pods for pid in pod.all) / count, "MiB"),
        Row("· and the engine's shims", pss_mib(pid for pod in pods for pid in (*pod.all, *pod.shims)) / count, "MiB"),
        Row("· control plane, RSS", rss_mib([bed.control_plane]), "MiB"),
        Row(
            "· one more, cold, to the answer",
            statistics.median(creates),
            "ms",
            best=min(creates),
            p99=max(creates),
            n=len(creates),
        ),
        Row(f"· creates, {_AT_ONCE} at once, on the way there", rate, "1/s"),
        Row(f"· processor time of each sandbox over {IDLE_S:g} s", busy[0] / count, "% of a core", target="< 0.1 %"),
        Row(f"· processor time of the control plane over {IDLE_S:g} s", busy[1], "% of a core"),
        Row("· memory of the machine in use", psutil.virtual_memory().used / 2**20, "MiB"),
    ]


def _busy(bed: Bed, pods: Sequence[SandboxProcesses]) -> tuple[float, float]:
    """Percent of a core, of all pods and of the control plane, while nobody asks for anything."""
    of_pods = [pid for pod in pods for pid in pod.all]
    before = cpu_ms(of_pods), cpu_ms([bed.control_plane])
    time.sleep(IDLE_S)
    return (cpu_ms(of_pods) - before[0]) / IDLE_S / 10, (cpu_ms([bed.control_plane]) - before[1]) / IDLE_S / 10
