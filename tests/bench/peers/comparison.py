"""The same call on the same server through each product, and the tables that hold them side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.bench import load
from tests.bench.load import Load, LoadError
from tests.bench.peers.peer import Running, echo_tool
from tests.bench.processes import rss_mib
from tests.bench.results import Row, Section
from tests.bench.rounds import rounds
from tests.bench.tool_calls import CONNECTIONS, Way, one_round
from tests.bench.wire import Endpoint, echo_call, http_client, http_echo_call, http_post

BUDGET_S = 150.0
SANDGATE = "Sandgate"

_WARM_UP_S = 0.3
_OWN = "own"


@dataclass(frozen=True, slots=True)
class Bare:
    """Nothing in front: the upstream itself, and an application that does less than it, for the generator's limit."""

    name: str
    endpoint: Endpoint
    pid: int

    def ways(self) -> dict[int, Way]:
        request = http_post(self.endpoint, self.endpoint.headers, echo_call("echo_legacy", "legacy"))
        return {n: _way(self.name, [request] * n, self.endpoint) for n in CONNECTIONS}


@dataclass(slots=True)
class Product:
    running: Running
    rss_at_start_mib: float
    ways: dict[int, Way] = field(default_factory=dict)
    """By number of connections."""
    failed: dict[int, str] = field(default_factory=dict)
    """Why a number of connections gave no result."""
    rss_after_load_mib: float = 0.0


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of every product at one number of connections, or of the product as such."""

    what: str
    unit: str
    value: Callable[[Way], float]
    lower_is_better: bool = True
    p99: Callable[[Way], float] | None = None
    target: str = ""
    target_at: Sequence[int] = CONNECTIONS


_MEASURES = (
    Measure("Tool call, latency", "ms", lambda way: way.p50_ms, p99=lambda way: way.p99_ms),
    Measure("Tool call, own processor time", "ms/call", lambda way: way.cpu_per_call_ms(_OWN), target="≤ 1 ms"),
    Measure(
        "Tool call, throughput",
        "calls/s",
        lambda way: way.per_second,
        lower_is_better=False,
        target="≥ 1,000",
        target_at=(16,),
    ),
)


def compare(products: Sequence[Product], bare: Sequence[Bare], *, wanted: int, seconds: float) -> Iterator[Section]:
    """All of them take turns in every round, so that all meet the same load."""
    with_nothing = [(one, one.ways()) for one in bare]
    for product in products:
        _prepare(product)
    for _ in rounds(wanted, budget_s=BUDGET_S):
        for one, ways in with_nothing:
            for way in ways.values():
                one_round(way, seconds, {_OWN: [one.pid]})
        for product in products:
            _round(product, seconds)
    for product in products:
        product.rss_after_load_mib = rss_mib(product.running.pids())
    for measure in _MEASURES:
        yield _section(measure, products, [ways for _, ways in with_nothing])
    yield _footprint(products)


def _prepare(product: Product) -> None:
    """Open the sessions, one for each connection, and send a little load."""
    endpoint = product.running.endpoint
    with http_client() as http:
        tool = echo_tool(http, endpoint)
    requests = [http_echo_call(endpoint, tool, "legacy") for _ in range(max(CONNECTIONS))]
    product.ways = {n: _way(product.running.name, requests[:n], endpoint) for n in CONNECTIONS}
    for n, way in product.ways.items():
        try:
            way.run(_WARM_UP_S)
        except (LoadError, TimeoutError, OSError) as error:
            product.failed[n] = str(error) or type(error).__name__


def _round(product: Product, seconds: float) -> None:
    for n, way in product.ways.items():
        if n not in product.failed:
            try:
                one_round(way, seconds, {_OWN: product.running.pids()})
            except (LoadError, TimeoutError, OSError) as error:
                product.failed[n] = str(error) or type(error).__name__


def _way(name: str, requests: Sequence[bytes], endpoint: Endpoint) -> Way:
    def run(seconds: float) -> Load:
        return load.over_http(endpoint.host, endpoint.port, requests, seconds=seconds)

    return Way(name, "", len(requests), run)


def _section(measure: Measure, products: Sequence[Product], bare: Sequence[Mapping[int, Way]]) -> Section:
    rows: list[Row] = []
    notes: list[str] = []
    for n in CONNECTIONS:
        ways = {p.running.name: p.ways[n] for p in products if n not in p.failed}
        own = measure.value(ways[SANDGATE]) if SANDGATE in ways else None
        rows += [_row(measure, way, own) for way in (*(one[n] for one in bare), *ways.values())]
        if own is not None:
            values = {name: measure.value(way) for name, way in ways.items() if name != SANDGATE}
            notes += _verdict(f"{n} conn.", values, own, lower_is_better=measure.lower_is_better)
        notes += [f"{n} conn.: {p.running.name} failed: {p.failed[n]}" for p in products if n in p.failed]
    return Section(f"{measure.what} (ratio: to Sandgate)", tuple(rows), tuple(notes))


def _row(measure: Measure, way: Way, own: float | None) -> Row:
    value = measure.value(way)
    return Row(
        way.name,
        value,
        measure.unit,
        p99=None if measure.p99 is None else measure.p99(way),
        n=way.calls,
        ratio=None if own is None else value / own,
        target=measure.target if way.path == SANDGATE and way.connections in measure.target_at else "",
    )


def _footprint(products: Sequence[Product]) -> Section:
    columns: Mapping[str, tuple[str, Callable[[Product], float]]] = {
        "start of the process to the first tools/list": ("s", lambda product: product.running.started_in_s),
        "RSS after the start": ("MiB", lambda product: product.rss_at_start_mib),
        "RSS after the load": ("MiB", lambda product: product.rss_after_load_mib),
    }
    rows: list[Row] = []
    notes: list[str] = []
    for what, (unit, value) in columns.items():
        values = {product.running.name: value(product) for product in products}
        own = values.get(SANDGATE)
        for name, found in values.items():
            rows.append(Row(f"{name}: {what}", found, unit, ratio=None if own is None else found / own))
        if own is not None:
            others = {name: found for name, found in values.items() if name != SANDGATE}
            notes += _verdict(what, others, own, lower_is_better=True)
    return Section("Start and memory (ratio: to Sandgate)", tuple(rows), tuple(notes))


def _verdict(where: str, others: Mapping[str, float], own: float, *, lower_is_better: bool) -> list[str]:
    """Says who is ahead of Sandgate, if anybody is."""
    ahead = [name for name, value in others.items() if (value < own if lower_is_better else value > own)]
    return [f"{where}: {', '.join(ahead)} {'is' if len(ahead) == 1 else 'are'} ahead of Sandgate."] if ahead else []
