"""A regression by a factor of three fails here. Everything is held against what was measured at the same moment.

Processor time is counted in units of work (machine.cpu_unit_ms), times on the clock against the engine's own for the
same containers, so that neither a slow machine nor a busy one matters. A round that some other load spoiled is followed
by further ones: the best of them is what counts. The limits are about three times what is usual; docs/performance.md
has the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from app.main import sandbox_images
from app.settings import Settings
from tests.bench.bed import ECHO_SERVERS, ERAS, Bed, installed
from tests.bench.creates import ONE_SERVER
from tests.bench.engine_floor import EngineFloor
from tests.bench.machine import cpu_unit_ms
from tests.bench.processes import cpu_ms, pss_mib, rss_mib
from tests.bench.tool_calls import http_way, one_round, watch
from tests.bench.wire import list_tools

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

MOST_ROUNDS = 8
COLD_TO_FLOOR = 6.0
COLD_UNITS = 1000.0
WARM_TO_FLOOR = 0.5
WARM_UNITS = 120.0
REMEMBERED_LIST_TO_SERVER_START = 0.35
CALL_UNITS = 1.7
AGENT_AND_GATEWAY_MIB = 90.0
CONTROL_PLANE_MIB = 240.0


@dataclass(frozen=True, slots=True)
class Costs:
    """The best of some rounds: the first ones wait for networks and connections, and any may be disturbed."""

    floor_ms: list[float] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    units: list[float] = field(default_factory=list)
    """Processor time."""

    @property
    def to_floor(self) -> float:
        return min(self.ms) / min(self.floor_ms)


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with installed(pool="base=1,mcp-gateway=1") as bed:
        yield bed


@pytest.fixture(scope="module")
def floor(bed: Bed) -> EngineFloor:
    return EngineFloor(bed.client, sandbox_images(Settings()))


@pytest.fixture(scope="module")
def cold(bed: Bed, floor: EngineFloor) -> Costs:
    """Creates without MCP that no warm pod serves; processor time of control plane and agent."""
    costs = Costs()
    for _ in range(MOST_ROUNDS):
        bed.until_pool_rests()
        costs.floor_ms.append(floor.one_container_ms())
        unit_ms, before, began = cpu_unit_ms(), cpu_ms([bed.control_plane]), time.perf_counter()
        with bed.sandbox(allow_internet_access=False) as created:
            costs.ms.append((time.perf_counter() - began) * 1000)
            spent_ms = cpu_ms([bed.control_plane]) - before + cpu_ms([bed.processes_of(created).agent])
            costs.units.append(spent_ms / unit_ms)
        if costs.to_floor < COLD_TO_FLOOR and min(costs.units) < COLD_UNITS:
            break
    return costs


def test_a_cold_create_takes_little_longer_than_its_container(cold: Costs) -> None:
    assert cold.to_floor < COLD_TO_FLOOR


def test_a_cold_create_costs_little_processor_time(cold: Costs) -> None:
    assert min(cold.units) < COLD_UNITS


def test_a_warm_create_takes_a_fraction_of_a_container_and_little_processor_time(bed: Bed, floor: EngineFloor) -> None:
    costs = Costs()
    for _ in range(MOST_ROUNDS):
        costs.floor_ms.append(floor.one_container_ms())
        bed.until_pool_rests()
        unit_ms, before, began = cpu_unit_ms(), cpu_ms([bed.control_plane]), time.perf_counter()
        with bed.sandbox():
            costs.ms.append((time.perf_counter() - began) * 1000)
            costs.units.append((cpu_ms([bed.control_plane]) - before) / unit_ms)
        if costs.to_floor < WARM_TO_FLOOR and min(costs.units) < WARM_UNITS:
            return
    raise AssertionError(costs)


def test_tools_are_listed_from_memory_long_before_their_server_could_have_started(bed: Bed, floor: EngineFloor) -> None:
    with bed.sandbox(mcp=ONE_SERVER):
        bed.until_remembered(ONE_SERVER)
    costs = Costs()
    for _ in range(MOST_ROUNDS):
        costs.floor_ms.append(floor.server_in_container_ms())
        bed.until_pool_rests()
        began = time.perf_counter()
        with bed.sandbox(mcp=ONE_SERVER) as created:
            assert "get_current_time" in list_tools(bed.http, bed.edge(created))
            costs.ms.append((time.perf_counter() - began) * 1000)
        if costs.to_floor < REMEMBERED_LIST_TO_SERVER_START:
            return
    raise AssertionError(costs)


def test_tool_calls_cost_little_processor_time_and_idle_sandboxes_little_memory(bed: Bed) -> None:
    with bed.sandbox(mcp=ECHO_SERVERS) as created:
        processes = bed.processes_of(created)
        assert pss_mib([processes.agent, processes.gateway]) < AGENT_AND_GATEWAY_MIB
        assert rss_mib([bed.control_plane]) < CONTROL_PLANE_MIB
        watched = watch(bed, created)
        for client in ERAS:
            spent: list[float] = []
            for _ in range(MOST_ROUNDS):
                way, unit_ms = http_way("edge + gateway", bed.edge(created), client, "legacy", 16), cpu_unit_ms()
                one_round(way, 0.7, watched)
                spent.append((way.cpu_per_call_ms("edge") + way.cpu_per_call_ms("gateway")) / unit_ms)
                if spent[-1] < CALL_UNITS:
                    break
            assert min(spent) < CALL_UNITS, client
