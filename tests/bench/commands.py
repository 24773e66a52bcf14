"""Commands in a sandbox, through the edge, by the E2B SDK."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.bench.bed import Bed
from tests.bench.creates import sdk_sandbox
from tests.bench.results import Section, distribution

_WARM_UP = 5


def measure(bed: Bed, *, seconds: float) -> Iterator[Section]:
    times: list[float] = []
    with sdk_sandbox(bed) as sandbox:
        for _ in range(_WARM_UP):
            sandbox.commands.run("true")
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            began = time.perf_counter()
            sandbox.commands.run("true")
            times.append((time.perf_counter() - began) * 1000)
    row = distribution('commands.run("true"), E2B SDK, through the edge', times, "ms", target="p50 ≤ 10 ms")
    yield Section("Commands", (row,))
