"""Many creates at the same moment, with and without warm pods for them, beside as many containers of the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.bench.bed import Bed
from tests.bench.engine_floor import EngineFloor
from tests.bench.results import Row, Section, distribution
from tests.bench.rounds import rounds

POOL_SIZE = 10
POOL = f"base={POOL_SIZE},mcp-gateway=0"
BUDGET_S = 40.0

_KILLS_AT_ONCE = 8


def measure(bed: Bed, floor: EngineFloor, *, wanted: int) -> Iterator[Section]:
    """Each row's values are times to an answer; `p99` of few is the last answer of all."""
    bed.set_pool(POOL)
    warm: list[float] = []
    cold: list[float] = []
    floors: list[float] = []
    for _ in rounds(wanted, budget_s=BUDGET_S):
        floors += at_once(POOL_SIZE, floor.one_container_ms)
        bed.until_pool_rests()
        cold += _creates(bed, POOL_SIZE, warm=False)
        bed.until_pool_rests()
        warm += _creates(bed, POOL_SIZE, warm=True)
    floors_of_fifty = at_once(5 * POOL_SIZE, floor.one_container_ms)
    bed.until_pool_rests()
    fifty = _creates(bed, 5 * POOL_SIZE, warm=True)  # last, because the pool grows by it
    yield Section(
        "Creates without MCP at the same moment, to the answer of each",
        (
            *_beside("10 at once", floors, (("10 at once, cold", cold), ("10 at once, a pool of 10", warm))),
            *_beside("50 at once", floors_of_fifty, (("50 at once, a pool of 10", fifty),)),
        ),
    )


def at_once(count: int, what: Callable[[], float]) -> list[float]:
    """What each of so many calls gave that began together."""
    with ThreadPoolExecutor(count) as threads:
        return [call.result() for call in [threads.submit(what) for _ in range(count)]]


def _creates(bed: Bed, count: int, *, warm: bool) -> list[float]:
    created: list[str] = []

    def one() -> float:
        began = time.perf_counter()
        created.append(bed.create(templateID="base", allow_internet_access=warm)["sandboxID"])
        return (time.perf_counter() - began) * 1000

    try:
        return at_once(count, one)
    finally:
        with ThreadPoolExecutor(_KILLS_AT_ONCE) as threads:
            list(threads.map(bed.kill, created))


def _beside(name: str, floors: list[float], ways: tuple[tuple[str, list[float]], ...]) -> Iterator[Row]:
    first = distribution(f"engine: {name}, one container each", floors, "ms", base=1.0)
    yield distribution(first.what, floors, "ms", base=first.value)
    for what, values in ways:
        yield distribution(what, values, "ms", base=first.value)
