"""What stays in use: start and memory of the control plane, memory and processor time of sandboxes at rest."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.bench.bed import Bed
from tests.bench.creates import ONE_SERVER
from tests.bench.processes import cpu_ms, pss_mib, rss_mib
from tests.bench.results import Row, Section, distribution
from tests.bench.rounds import rounds

STARTS_BUDGET_S = 15.0

_SETTLE_S = 2.0


def control_plane(bed: Bed, *, wanted: int) -> Iterator[Section]:
    """Starts of an installation that is set up, as every start but the first one is."""
    times: list[float] = []
    spent: list[float] = []
    for _ in rounds(wanted, budget_s=STARTS_BUDGET_S):
        bed.installation.stop()
        began = time.perf_counter()
        bed.installation.start()
        times.append((time.perf_counter() - began) * 1000)
        spent.append(cpu_ms([bed.control_plane]))
    yield Section(
        "Control plane",
        (
            distribution("start of the process to the first answer", times, "ms", target="≤ 2,000 ms"),
            distribution("· processor time of it", spent, "ms"),
            Row("RSS after the start", rss_mib([bed.control_plane]), "MiB", target="≤ 120 MB"),
        ),
    )


def sandbox_at_rest(bed: Bed, *, idle_s: float) -> Iterator[Section]:
    """Shared pages count by share, so the numbers fall with every further sandbox of the same images."""
    with bed.sandbox(mcp=ONE_SERVER) as created:
        time.sleep(_SETTLE_S)
        processes = bed.processes_of(created)
        agent, gateway = pss_mib([processes.agent]), pss_mib([processes.gateway])
        before = cpu_ms(processes.all), cpu_ms([bed.control_plane])
        time.sleep(idle_s)
        in_sandbox, in_control_plane = (
            (after - earlier) / idle_s / 10
            for after, earlier in zip((cpu_ms(processes.all), cpu_ms([bed.control_plane])), before, strict=True)
        )
        rows = (
            Row("agent + gateway, PSS", agent + gateway, "MiB", target="≤ 45 MB"),
            Row("· agent", agent, "MiB"),
            Row("· gateway", gateway, "MiB"),
            Row("the same with the server `time`", agent + gateway + pss_mib(processes.servers), "MiB"),
            Row("whole pod, with the containers' inits", pss_mib(processes.all), "MiB"),
            Row(f"processor time of the pod over {idle_s:g} s", in_sandbox, "% of a core", target="< 0.1 %"),
            Row(f"processor time of the control plane over {idle_s:g} s", in_control_plane, "% of a core"),
        )
    yield Section("One sandbox at rest", rows)
