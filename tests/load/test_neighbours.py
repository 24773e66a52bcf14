"""What one sandbox does to another: spinners, a fork bomb, a memory hog and a disk filler beside tool calls.

The villain is frozen and thawed in turns, and windows with it are held against the windows right before and after them
without it. So what else the machine does, and whatever changes slowly, falls out of the comparison.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
import structlog

from tests.bench.bed import Bed, installed
from tests.bench.load import over_http
from tests.bench.results import percentile
from tests.bench.wire import Endpoint, http_echo_call
from tests.e2e.installation import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

_log = structlog.get_logger()

LIMITS = {"SANDGATE_CPUS": "2", "SANDGATE_MEMORY_MIB": "256", "SANDGATE_PIDS": "128"}
MOST_SLOWDOWN = 1.2 if (os.cpu_count() or 1) > 4 else 2.0
"""Of the 95th percentile, at full size: on a machine that does nothing else, with windows enough. Where villain and
call don't find processors of their own, the programs of a call take turns (docs/performance.md)."""
MOST_SLOWDOWN_IN_SHORT = 5.0
"""Of a few short windows, and of some more where these were too slow, on a machine that may do other things."""

VILLAINS = {
    "spinners": "for spinner in 1 2 3 4; do (while true; do :; done)& done; wait",
    "fork bomb": "bomb() { bomb | bomb & }; while true; do bomb; sleep 0.1; done",
    "memory hog": "while true; do python3 -c 'x = [bytearray(1 << 20) for _ in range(100000)]'; done",
    # It takes the space of 512 MiB at most: the machine is shared.
    "disk filler": "while true; do dd if=/dev/zero of=$HOME/filler bs=1M count=512 conv=fsync; rm $HOME/filler; done",
}


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with installed(settings=LIMITS) as bed:
        yield bed


class Neighbour:
    """A sandbox whose tool is called over one connection, one call after the other."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._request = http_echo_call(endpoint, "echo_legacy", "legacy")

    def p95_ms(self, seconds: float) -> float:
        calls = over_http(self._endpoint.host, self._endpoint.port, [self._request], seconds=seconds)
        return percentile(calls.latencies_ms, 95)


@dataclass(frozen=True, slots=True)
class Usage:
    processors: float
    memory_mib: float
    processes: int


class Villain:
    """A sandbox that does its worst until it is frozen.

    It is frozen in its cgroup, not by the engine: a sandbox whose container was paused by others is taken for dead.
    """

    def __init__(self, bed: Bed, sandbox_id: str, program: str) -> None:
        self._client = bed.client
        self._container = bed.installation.container(sandbox_id, "workspace")
        self._freezer = freezer_of(bed.client.inspect_container(self._container)["State"]["Pid"])
        # In a session of its own, so that it goes on without its client.
        command = f"nohup setsid bash -c {shlex.quote(program)} >/dev/null 2>&1 &"
        bed.installation.sdk(sandbox_id).commands.run(command)

    def freeze(self) -> None:
        self._freezer.write_text("1" if self._freezer.name == "cgroup.freeze" else "FROZEN")

    def thaw(self) -> None:
        self._freezer.write_text("0" if self._freezer.name == "cgroup.freeze" else "THAWED")

    def uses(self) -> Usage:
        """Over about a second from now on."""
        seen = self._client.stats(self._container, stream=False)
        now, before = seen["cpu_stats"], seen["precpu_stats"]
        used_ns = now["cpu_usage"]["total_usage"] - before["cpu_usage"]["total_usage"]
        total_ns = now["system_cpu_usage"] - before["system_cpu_usage"]
        return Usage(
            processors=used_ns / total_ns * now["online_cpus"],
            memory_mib=seen["memory_stats"]["usage"] / 2**20,
            processes=seen["pids_stats"]["current"],
        )


def freezer_of(pid: int) -> Path:
    """The file by which a process's cgroup is frozen (cgroups(7))."""
    groups = {}
    for line in Path("/proc", str(pid), "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        groups[controllers] = path.lstrip("/")
    if "freezer" in groups:
        return Path("/sys/fs/cgroup/freezer", groups["freezer"], "freezer.state")
    return Path("/sys/fs/cgroup", groups[""], "cgroup.freeze")


def slowdown(without: list[float], beside: list[float]) -> float:
    """By what factor the usual window with the villain is slower than those right before and after it without."""
    return median(with_it / without_it for with_it, without_it in zip(beside, between(without), strict=True))


def between(windows: list[float]) -> list[float]:
    """What would be expected between each two of them."""
    return [(before + after) / 2 for before, after in pairwise(windows)]


@pytest.mark.parametrize("villain", VILLAINS)
def test_a_villain_slows_its_neighbours_little_and_is_held_by_its_limits(
    bed: Bed, is_full_size: bool, villain: str
) -> None:
    windows, most_windows, seconds = (20, 20, 1.5) if is_full_size else (3, 9, 0.5)
    most_slowdown = MOST_SLOWDOWN if is_full_size else MOST_SLOWDOWN_IN_SHORT
    with bed.sandbox(mcp={"benchLegacy": {}}) as good:
        neighbour = Neighbour(bed.edge(good))
        neighbour.p95_ms(seconds)  # the first calls start the server
        bad_id = bed.create()["sandboxID"]
        bad = Villain(bed, bad_id, VILLAINS[villain])
        bad.freeze()
        without: list[float] = [neighbour.p95_ms(seconds)]
        beside: list[float] = []
        while len(beside) < windows or (len(beside) < most_windows and slowdown(without, beside) >= most_slowdown):
            bad.thaw()
            beside.append(neighbour.p95_ms(seconds))
            bad.freeze()
            without.append(neighbour.p95_ms(seconds))
        bad.thaw()
        used = bad.uses()
        began = time.monotonic()
        bed.kill(bad_id)
        gone_s = time.monotonic() - began
        _log.info(
            "villain",
            name=villain,
            p95_ms=round(median(between(without)), 2),
            beside_it_ms=round(median(beside), 2),
            slowdown=round(slowdown(without, beside), 2),
            gone_s=round(gone_s, 1),
            **asdict(used),
        )
        assert used.processors < float(LIMITS["SANDGATE_CPUS"]) * 1.1  # its share is dealt out by tenths of a second
        assert used.memory_mib <= int(LIMITS["SANDGATE_MEMORY_MIB"])
        assert used.processes <= int(LIMITS["SANDGATE_PIDS"])
        assert slowdown(without, beside) < most_slowdown
        wait_until(lambda: bad_id not in bed.installation.sandboxes(), bed.installation.sandboxes)
        assert bed.installation.sdk(good["sandboxID"]).commands.run("echo here").stdout == "here\n"
