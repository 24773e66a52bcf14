"""What is done to a running sandbox: files up and down, pause, resume, snapshot, fork."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from e2b import Sandbox

from tests.bench.bed import Bed
from tests.bench.creates import sdk_sandbox
from tests.bench.engine_floor import EngineFloor, FloorContainer
from tests.bench.results import Row, Section, distribution
from tests.bench.rounds import rounds

BUDGET_S = 40.0
CONTENT = os.urandom(10 * 2**20)

_FLOORS = {
    "10 MiB up, E2B SDK": "engine: put an archive of 10 MiB into a container",
    "10 MiB down, E2B SDK": "engine: get it back",
    "pause with memory": "engine: freeze a container",
    "resume with memory": "engine: thaw it",
    "snapshot": "engine: commit a container as an image",
}
"""What Sandgate does, and what the engine does for it."""


@dataclass(frozen=True, slots=True)
class Stopwatch:
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """In ms, by what was timed."""

    def __call__(self, what: str, action: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = action()
        self.times[what].append((time.perf_counter() - began) * 1000)
        return result


def measure(bed: Bed, floor: EngineFloor, *, wanted: int) -> Iterator[Section]:
    timed = Stopwatch()
    for _ in rounds(wanted, budget_s=BUDGET_S):
        with floor.container() as container:
            _floor_round(container, timed)
        with sdk_sandbox(bed) as sandbox:
            _round(bed, sandbox, timed)
    yield _section(timed.times)


def _floor_round(container: FloorContainer, timed: Stopwatch) -> None:
    put, get, freeze, thaw, commit = _FLOORS.values()
    timed(put, lambda: container.put(CONTENT))
    timed(get, container.get)
    timed(freeze, container.freeze)
    timed(thaw, container.thaw)
    timed(commit, container.commit)


def _round(bed: Bed, sandbox: Sandbox, timed: Stopwatch) -> None:
    up, down, pause, resume, keep = _FLOORS
    path = f"/sandboxes/{sandbox.sandbox_id}"
    timed(up, lambda: sandbox.files.write("/tmp/content", CONTENT))
    assert timed(down, lambda: sandbox.files.read("/tmp/content", format="bytes")) == CONTENT
    timed(pause, lambda: bed.post(f"{path}/pause"))
    timed(resume, lambda: bed.post(f"/v2{path}/connect", timeout=3600))
    timed("pause, files only", lambda: bed.post(f"{path}/pause", memory=False))
    timed("resume, files only", lambda: bed.post(f"/v2{path}/connect", timeout=3600))
    snapshot = timed(keep, lambda: bed.post(f"{path}/snapshots"))
    bed.delete(f"/templates/{snapshot['snapshotID']}")
    forks = timed("fork, 1 copy", lambda: bed.post(f"{path}/fork", count=1, timeout=3600))
    forks += timed("fork, 3 copies", lambda: bed.post(f"{path}/fork", count=3, timeout=3600))
    for fork in forks:
        bed.kill(fork["sandbox"]["sandboxID"])


def _section(times: dict[str, list[float]]) -> Section:
    rows: list[Row] = []
    for own, engine in _FLOORS.items():
        base = distribution(engine, times[engine], "ms").value
        rows.append(distribution(engine, times[engine], "ms", base=base))
        rows.append(distribution(own, times[own], "ms", base=base))
    others = times.keys() - _FLOORS.keys() - set(_FLOORS.values())
    rows += [distribution(what, values, "ms") for what, values in times.items() if what in others]
    return Section("A running sandbox without MCP: files, pause, resume, snapshot, fork", tuple(rows))
