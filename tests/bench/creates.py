"""Cold creates beside the engine's floor: in each round one of every kind, so that all of them meet the same load."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from e2b import Sandbox

from tests.bench.bed import Bed
from tests.bench.engine_floor import EngineFloor
from tests.bench.results import Section, distribution
from tests.bench.rounds import rounds
from tests.bench.wire import list_tools

BUDGET_S = 75.0

Servers = Mapping[str, Mapping[str, object]]

ONE_SERVER: Servers = {"time": {}}
FIVE_SERVERS: Servers = {name: {} for name in ("time", "fetch", "memory", "git", "filesystem")}
"""Python and Node; three run in the gateway's container, two in the workspace."""


@dataclass(frozen=True, slots=True)
class Times:
    """In ms, one of each for a round."""

    floor_1: list[float] = field(default_factory=list)
    floor_2: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    bare_answer: list[float] = field(default_factory=list)
    bare_command: list[float] = field(default_factory=list)
    one_server: list[float] = field(default_factory=list)
    five_servers: list[float] = field(default_factory=list)
    kill: list[float] = field(default_factory=list)


def measure(bed: Bed, floor: EngineFloor, *, wanted: int) -> Iterator[Section]:
    bare(bed, Times())  # the first create of all waits for networks and guard, and fills caches
    times = Times()
    for _ in rounds(wanted, budget_s=BUDGET_S):
        times.floor_1.append(floor.one_container_ms())
        bare(bed, times)
        times.floor_2.append(floor.two_containers_ms())
        times.server.append(floor.server_in_container_ms())
        times.one_server.append(to_first_list_ms(bed, ONE_SERVER))
        times.five_servers.append(to_first_list_ms(bed, FIVE_SERVERS))
    one, two = statistics.median(times.floor_1), statistics.median(times.floor_2)
    cold = "≤ 1.3 × floor"
    rows = (
        distribution("engine: one container", times.floor_1, "ms", base=one),
        distribution("create without MCP, to the answer", times.bare_answer, "ms", base=one, target=cold),
        distribution("· to the end of the first command", times.bare_command, "ms", base=one),
        distribution("engine: two containers, one network namespace", times.floor_2, "ms", base=two),
        distribution("engine: one container, `time` up to its answer to initialize", times.server, "ms", base=two),
        distribution("create with 1 server, to the first tools/list", times.one_server, "ms", base=two, target=cold),
        distribution("create with 5 servers, to the first tools/list", times.five_servers, "ms", base=two, target=cold),
        distribution("kill, to the answer", times.kill, "ms"),
    )
    yield Section("Cold create, beside the engine's own floor for the same containers", rows)


def bare(bed: Bed, times: Times) -> None:
    """One sandbox without MCP, by the E2B SDK: its create, a first command, its end."""
    began = time.perf_counter()
    with sdk_sandbox(bed) as sandbox:
        times.bare_answer.append(_ms_since(began))
        sandbox.commands.run("true")
        times.bare_command.append(_ms_since(began))
        began = time.perf_counter()
        sandbox.kill()
        times.kill.append(_ms_since(began))


def to_first_list_ms(bed: Bed, servers: Servers) -> float:
    """From the create request to the first `tools/list` that succeeds."""
    began = time.perf_counter()
    with bed.sandbox(mcp=servers) as created:
        assert list_tools(bed.edge(created))
        return _ms_since(began)


@contextmanager
def sdk_sandbox(bed: Bed) -> Iterator[Sandbox]:
    """The E2B SDK's sandbox without MCP. It is gone at the end, containers included."""
    url = bed.installation.url
    sandbox = Sandbox.create("base", api_key=bed.installation.key, api_url=url, sandbox_url=url)
    try:
        yield sandbox
    finally:
        sandbox.kill()
        bed.installation.wait_until_nothing_runs()


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
