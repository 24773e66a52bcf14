"""Creates beside the engine's floor: in each round one of every kind, so that all of them meet the same load.

A cold create asks for a sandbox without internet access: the same containers, of which no warm pod is kept. An empty
memory is that of a team which has had no sandbox yet.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from e2b import Sandbox

from tests.bench.bed import Bed
from tests.bench.engine_floor import EngineFloor
from tests.bench.results import Row, Section, distribution
from tests.bench.rounds import rounds
from tests.bench.wire import call_tool, list_tools

BUDGET_S = 75.0
POOL = "base=2,mcp-gateway=2"

Servers = Mapping[str, Mapping[str, object]]
Pods = Literal["cold", "warm"]
PODS: tuple[Pods, ...] = ("cold", "warm")
Memory = Literal["memory empty", "remembered"]

ONE_SERVER: Servers = {"time": {}}
FIVE_SERVERS: Servers = {name: {} for name in ("time", "fetch", "memory", "git", "filesystem")}
"""Python and Node; three run in the gateway's container, two in the workspace."""

_COLD = "≤ 1.3 × floor"
_ANSWER, _LIST, _CALL = "to the answer", "to the first tools/list", "to the first tool call"


@dataclass(frozen=True, slots=True)
class Kind:
    servers: Servers
    pods: Pods
    memory: Memory

    @property
    def name(self) -> str:
        return f"{len(self.servers)} server{'s' if len(self.servers) > 1 else ''}, {self.pods}, {self.memory}"

    @property
    def target(self) -> str:
        """For the first `tools/list`."""
        return "p50 ≤ 60 ms" if self.pods == "warm" and self.memory == "remembered" else _COLD


KINDS = (
    Kind(ONE_SERVER, "cold", "memory empty"),
    Kind(ONE_SERVER, "cold", "remembered"),
    Kind(ONE_SERVER, "warm", "memory empty"),
    Kind(ONE_SERVER, "warm", "remembered"),
    Kind(FIVE_SERVERS, "cold", "memory empty"),
    Kind(FIVE_SERVERS, "warm", "remembered"),
)


@dataclass(frozen=True, slots=True)
class Times:
    """In ms, by what was measured, one for a round."""

    of: dict[tuple[str, ...], list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, ms: float, *what: str) -> None:
        self.of[what].append(ms)

    def median(self, *what: str) -> float:
        return statistics.median(self.of[what])


def measure(bed: Bed, floor: EngineFloor, *, wanted: int) -> Iterator[Section]:
    bed.set_pool(POOL)
    warm_up = Times()
    for pods in PODS:  # the first ones of all wait for networks and guard, and fill caches
        bare(bed, warm_up, pods)
    for servers in (ONE_SERVER, FIVE_SERVERS):
        with bed.sandbox(mcp=servers):
            bed.until_remembered(servers)
    times = Times()
    of_pods = floor.on(bed.network)
    # A bridge that nothing is on goes down, and the kernel may take most of a second to bring it up again.
    with bed.sandbox(templateID="base", allow_internet_access=False):
        for _ in rounds(wanted, budget_s=BUDGET_S):
            bed.until_pool_rests()
            times.add(floor.one_container_ms(), "default network")
            times.add(of_pods.one_container_ms(), "floor 1")
            for pods in PODS:
                bare(bed, times, pods)
            times.add(of_pods.two_containers_ms(), "floor 2")
            times.add(floor.server_in_container_ms(), "server")
            for kind in KINDS:
                with_servers(bed, kind, times)
    yield _without_mcp(times)
    yield _with_servers(times)


def bare(bed: Bed, times: Times, pods: Pods) -> None:
    """A sandbox without MCP: once by one request, once by the E2B SDK up to the end of a first command."""
    bed.until_pool_rests()
    began = time.perf_counter()
    created = bed.create(templateID="base", allow_internet_access=pods == "warm")
    times.add(_ms_since(began), pods, _ANSWER)
    bed.kill(created["sandboxID"])
    bed.until_pool_rests()
    began = time.perf_counter()
    with sdk_sandbox(bed, pods) as sandbox:
        sandbox.commands.run("true")
        times.add(_ms_since(began), pods, "command")
        began = time.perf_counter()
        sandbox.kill()
        times.add(_ms_since(began), "kill")


def with_servers(bed: Bed, kind: Kind, times: Times) -> None:
    """To the answer, to the first list that succeeds, and to the first call that does."""
    key = bed.new_team() if kind.memory == "memory empty" else None
    bed.until_pool_rests()
    began = time.perf_counter()
    created = bed.create(key=key, mcp=kind.servers, allow_internet_access=kind.pods == "warm")
    times.add(_ms_since(began), kind.name, _ANSWER)
    assert "get_current_time" in list_tools(bed.http, bed.edge(created))
    times.add(_ms_since(began), kind.name, _LIST)
    call_tool(bed.http, bed.edge(created), "get_current_time", timezone="UTC")
    times.add(_ms_since(began), kind.name, _CALL)
    bed.kill(created["sandboxID"], key)


@contextmanager
def sdk_sandbox(bed: Bed, pods: Pods = "warm") -> Iterator[Sandbox]:
    """The E2B SDK's sandbox without MCP. It is gone at the end, containers included."""
    url = bed.installation.url
    sandbox = Sandbox.create(
        "base",
        timeout=3600,
        allow_internet_access=pods == "warm",
        api_key=bed.installation.key,
        api_url=url,
        sandbox_url=url,
    )
    try:
        yield sandbox
    finally:
        bed.kill(sandbox.sandbox_id)


def _without_mcp(times: Times) -> Section:
    one = times.median("floor 1")
    rows = [
        distribution("engine: one container, on its default network", times.of["default network",], "ms", base=one),
        distribution("engine: one container, on the pods' network", times.of["floor 1",], "ms", base=one),
    ]
    for pods in PODS:
        target = _COLD if pods == "cold" else "p50 ≤ 15 ms"
        answers, commands = times.of[pods, _ANSWER], times.of[pods, "command"]
        rows.append(distribution(f"{pods}, {_ANSWER}", answers, "ms", base=one, target=target))
        rows.append(distribution(f"{pods}, E2B SDK, to the end of the first command", commands, "ms", base=one))
    rows.append(distribution("kill, E2B SDK, to the answer", times.of["kill",], "ms"))
    return Section("Create without MCP, beside the engine's own floor for the same container", tuple(rows))


def _with_servers(times: Times) -> Section:
    two = times.median("floor 2")
    server = "engine: one container, `time` up to its answer to initialize"
    rows: list[Row] = [
        distribution(
            "engine: two containers, one namespace on the pods' network", times.of["floor 2",], "ms", base=two
        ),
        distribution(server, times.of["server",], "ms", base=two),
    ]
    for kind in KINDS:
        for step in (_ANSWER, _LIST, _CALL):
            name = f"{kind.name}: {step}" if step == _ANSWER else f"· {step}"
            target = kind.target if step == _LIST else ""
            rows.append(distribution(name, times.of[kind.name, step], "ms", base=two, target=target))
    return Section("Create with MCP servers, beside the engine's own floor for the same containers", tuple(rows))


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
