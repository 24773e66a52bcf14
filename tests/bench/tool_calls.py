"""A tool call three ways, on the same server: over its own stdin and stdout, through the gateway, and through both."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.bench import load
from tests.bench.asgi_server import serving
from tests.bench.bed import ECHO_SERVERS, ERAS, Bed, echo_command
from tests.bench.load import Load
from tests.bench.processes import cpu_ms
from tests.bench.results import Row, Section
from tests.bench.rounds import rounds
from tests.bench.wire import Endpoint, Era, echo_call, http_echo_call, http_post

CONNECTIONS = (1, 16, 64)
BUDGET_S = 50.0

_FLOOR, _DIRECT, _GATEWAY, _EDGE = "bare ASGI app", "direct, stdio", "gateway", "edge + gateway"
_WARM_UP_S = 0.3


@dataclass(frozen=True, slots=True)
class Way:
    """One way to the server, with what its rounds of load gave."""

    path: str
    eras: str
    """Of client and server."""
    connections: int
    run: Callable[[float], Load] = field(repr=False)
    """One round of this many seconds."""
    loads: list[Load] = field(default_factory=list)
    spent: list[Mapping[str, float]] = field(default_factory=list)
    """Processor time in ms of each part in each round."""

    @property
    def name(self) -> str:
        return f"{self.path}{', ' if self.eras else ''}{self.eras}, {self.connections} conn."

    @property
    def p50_ms(self) -> float:
        return statistics.median(round_.p50_ms for round_ in self.loads)

    @property
    def p99_ms(self) -> float:
        return statistics.median(round_.p99_ms for round_ in self.loads)

    @property
    def per_second(self) -> float:
        return statistics.median(round_.per_second for round_ in self.loads)

    @property
    def calls(self) -> int:
        return sum(round_.calls for round_ in self.loads)

    def cpu_per_call_ms(self, part: str) -> float:
        return sum(spent[part] for spent in self.spent) / self.calls


def measure(bed: Bed, *, wanted: int, seconds: float) -> Iterator[Section]:
    """The load generator's own limit, latency and throughput, processor time. Ways take turns, round by round."""
    with bed.sandbox(mcp=ECHO_SERVERS) as sandbox, serving("tests.bench.floor_app:app") as floor:
        watched = {**watch(bed, sandbox), "floor": [floor.pid]}
        ways = [_floor_way(floor.port, connections) for connections in CONNECTIONS]
        for connections in CONNECTIONS:
            for era in ERAS:
                ways.append(_direct_way(era, connections))
                ways.append(http_way(_GATEWAY, bed.gateway(sandbox), era, era, connections))
                ways.append(http_way(_EDGE, bed.edge(sandbox), era, era, connections))
            ways.append(http_way(_EDGE, bed.edge(sandbox), "modern", "legacy", connections))
        for way in ways:
            way.run(_WARM_UP_S)
        for _ in rounds(wanted, budget_s=BUDGET_S):
            for way in ways:
                one_round(way, seconds, watched)
    yield _latency(ways)
    yield _throughput(ways)
    yield _processor_time(ways)


def watch(bed: Bed, sandbox: Mapping[str, object]) -> Mapping[str, Sequence[int]]:
    """The processes whose time is counted."""
    processes = bed.processes_of(sandbox)
    return {"edge": [bed.control_plane], "gateway": [processes.gateway], "server": processes.servers}


def one_round(way: Way, seconds: float, watched: Mapping[str, Sequence[int]]) -> None:
    before = {part: cpu_ms(pids) for part, pids in watched.items()}
    way.loads.append(way.run(seconds))
    way.spent.append({part: cpu_ms(pids) - before[part] for part, pids in watched.items()})


def http_way(path: str, endpoint: Endpoint, client: Era, server: Era, connections: int) -> Way:
    requests = [http_echo_call(endpoint, f"echo_{server}", client) for _ in range(connections)]

    def run(seconds: float) -> Load:
        return load.over_http(endpoint.host, endpoint.port, requests, seconds=seconds)

    return Way(path, f"{client} → {server}", connections, run)


def _direct_way(era: Era, in_flight: int) -> Way:
    requests = [echo_call(f"echo_{era}", era, identifier) for identifier in range(1, in_flight + 1)]
    command = echo_command(sys.executable, era)
    return Way(_DIRECT, era, in_flight, lambda seconds: load.over_stdio(command, requests, seconds=seconds))


def _floor_way(port: int, connections: int) -> Way:
    nowhere = Endpoint("127.0.0.1", port, "/", "none")
    requests = [http_post(nowhere, nowhere.headers, echo_call("echo", "modern"))] * connections
    return Way(_FLOOR, "", connections, lambda seconds: load.over_http(nowhere.host, port, requests, seconds=seconds))


def _latency(ways: Sequence[Way]) -> Section:
    rows: list[Row] = []
    for way in ways:
        direct = way if way.path == _FLOOR else _direct(way, ways)
        best = min(round_.p50_ms for round_ in way.loads)
        ratio = None if way.path == _FLOOR else way.p50_ms / direct.p50_ms
        rows.append(Row(way.name, way.p50_ms, "ms", best=best, p99=way.p99_ms, n=way.calls, ratio=ratio))
        if way.path == _EDGE and way.connections == 1:
            added, at_best = way.p50_ms - direct.p50_ms, best - min(round_.p50_ms for round_ in direct.loads)
            rows.append(Row("· added to the direct call", added, "ms", best=at_best, n=way.calls, target="≤ 1.5 ms"))
    return Section("Tool call, latency (ratio: to the direct call)", tuple(rows))


def _throughput(ways: Sequence[Way]) -> Section:
    rows = [
        Row(
            way.name,
            way.per_second,
            "calls/s",
            best=max(round_.per_second for round_ in way.loads),
            n=way.calls,
            target="≥ 1,000" if way.path == _EDGE and way.connections > 1 else "",
        )
        for way in ways
    ]
    return Section("Tool call, throughput (the bare ASGI app shows the load generator's own limit)", tuple(rows))


def _processor_time(ways: Sequence[Way]) -> Section:
    rows: list[Row] = []
    for way in ways:
        edge, gateway, server = (way.cpu_per_call_ms(part) for part in ("edge", "gateway", "server"))
        if way.path == _FLOOR:
            rows.append(Row(way.name, way.cpu_per_call_ms("floor"), "ms/call", n=way.calls))
        elif way.path != _DIRECT:
            what = f"{way.name}: edge {edge:.3f}, gateway {gateway:.3f} (server {server:.3f})"
            rows.append(Row(what, edge + gateway, "ms/call", n=way.calls, target="≤ 1 ms"))
    return Section(
        "Tool call, processor time of edge and gateway together; a bare ASGI app for comparison", tuple(rows)
    )


def _direct(way: Way, ways: Sequence[Way]) -> Way:
    """The direct way to the same server, at the same number of calls under way."""
    server = way.eras.rpartition(" ")[2]
    return next(w for w in ways if (w.path, w.eras, w.connections) == (_DIRECT, server, way.connections))
