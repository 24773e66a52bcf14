"""`python -m tests.bench.catalog`: the first create of a new team with each server of the catalog, to its `tools/list`.

Servers get made-up credentials and the sandbox may reach nothing, as on a machine without internet. Each is asked for
twice: of a pod that waits warm, with no more options than the server needs, and cold, on the network that has no way
out, with all that it takes. Needs a Docker Engine and the sandbox images. Installs and rehearses what is not yet, which
takes a quarter of an hour for the whole catalog, unless `--home` names an installation that has done so.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import docker
import httpx
from pydantic import JsonValue

from app.catalog import Catalog, ServerDefinition
from app.catalog.rehearsals import rehearsals_of
from app.main import make_catalog, sandbox_images
from app.settings import Settings
from tests.bench.bed import NO_POOL, Bed, installed
from tests.bench.engine_floor import EngineFloor
from tests.bench.results import Row, Section, distribution, percentile
from tests.bench.runs import Output, run
from tests.bench.wire import list_tools

TARGET_MS = 1000.0
_POOL = "base=0,mcp-gateway=1"
_RUN_LIMIT_S = 7200
_SLOWEST = 5
_FLOOR_EVERY = 8
"""Servers between two looks at how fast the engine is at this moment."""

_NOTHING_OUT: Mapping[str, JsonValue] = {"network": {"denyOut": ["0.0.0.0/0"]}}
"""Of a sandbox on the network that warm pods are on."""
_NO_WAY_OUT: Mapping[str, JsonValue] = {"allow_internet_access": False}


@dataclass(frozen=True, slots=True)
class Way:
    """How all servers are asked for, one after the other."""

    name: str
    pool: str
    network: Mapping[str, JsonValue]
    whole: bool
    """Whether a server gets all that it takes, or no more than it needs to list its tools."""

    def options(self, bed: Bed, definition: ServerDefinition) -> Mapping[str, JsonValue]:
        rehearsals = rehearsals_of(definition)
        listed = [one for one in rehearsals if one.fingerprint in bed.rehearsals(definition.name)] or list(rehearsals)
        return listed[0 if self.whole else -1].options


WAYS = (
    Way("warm pod, no more options than needed", _POOL, _NOTHING_OUT, whole=False),
    Way("cold, all options", NO_POOL, _NO_WAY_OUT, whole=True),
)


@dataclass(frozen=True, slots=True)
class Listed:
    key: str
    ms: float
    """From the request to the list of tools."""
    create_ms: float
    tools: int
    failure: str | None = None


def measure(
    bed: Bed, floor: EngineFloor, definitions: Sequence[ServerDefinition], ways: Sequence[Way]
) -> Iterator[Section]:
    for way in ways:
        bed.set_pool(way.pool)
        _create(bed, bed.new_team(), "time", {}, way.network)  # the first of all waits for networks and guard
        team = bed.new_team()
        listed: list[Listed] = []
        floors: list[float] = []
        for number, definition in enumerate(definitions):
            bed.until_pool_rests()
            if number % _FLOOR_EVERY == 0:
                floors.append(floor.two_containers_ms())
            listed.append(_create(bed, team, definition.key, way.options(bed, definition), way.network))
        yield _section(way, floors, listed)


def _create(
    bed: Bed, team: str, key: str, options: Mapping[str, JsonValue], network: Mapping[str, JsonValue]
) -> Listed:
    body = {"timeout": 600, "mcp": {key: options}, **network}
    began = time.perf_counter()
    answer = bed.http.post(f"{bed.installation.url}/v2/sandboxes", headers={"X-API-KEY": team}, json=body)
    create_ms = _ms_since(began)
    if answer.status_code != httpx.codes.CREATED:
        return Listed(key, create_ms, create_ms, 0, f"{answer.status_code}: {answer.json().get('message')}")
    created = answer.json()
    tools: list[str] = []
    failure = None
    try:
        tools = list_tools(bed.http, bed.edge(created))
    except httpx.HTTPError as error:
        failure = str(error)
    listed = Listed(key, _ms_since(began), create_ms, len(tools), failure or (None if tools else "lists no tools"))
    bed.kill(created["sandboxID"], team)
    return listed


def _section(way: Way, floors: Sequence[float], listed: Sequence[Listed]) -> Section:
    worked = [one for one in listed if one.failure is None]
    notes = [f"{one.key}: {' '.join((one.failure or '').split())[:300]}" for one in listed if one.failure is not None]
    base = statistics.median(floors)
    rows = [distribution("engine: two containers, one network namespace", floors, "ms", base=base)]
    if worked:
        times = [one.ms for one in worked]
        slowest = sorted(worked, key=lambda one: -one.ms)[:_SLOWEST]
        target = f"< {TARGET_MS:.0f} ms"
        rows += [
            distribution("to the answer of the create", [one.create_ms for one in worked], "ms", base=base),
            distribution("to the list of tools", times, "ms", base=base, target=target),
            Row("· 95 of 100 within", percentile(times, 95), "ms", n=len(times), target=target),
            Row("· all within", max(times), "ms", n=len(times), target=target),
            Row(f"· within {TARGET_MS:.0f} ms", sum(ms < TARGET_MS for ms in times), "servers", n=len(listed)),
            *(Row(f"· {one.key}, {one.tools} tools", one.ms, "ms") for one in slowest),
        ]
    return Section(f"First create with each server of the catalog, {way.name}", tuple(rows), tuple(notes))


def rehearse(bed: Bed, keys: Sequence[str], home: Path | None) -> None:
    """Have the servers installed and what they list known; taken from another installation's home if one is given."""
    if home is not None:
        _take_over(home / "sandgate.db", bed.installation.home / "sandgate.db")
    command = [str(Path(sys.executable).with_name("sandgate")), "catalog", "install", *keys]
    subprocess.run(command, env=bed.installation.environment, check=True)


def _take_over(source: Path, target: Path) -> None:
    database = sqlite3.connect(target, timeout=30)
    try:
        database.execute("ATTACH ? AS theirs", (f"file:{source}?mode=ro",))
        database.execute("INSERT OR REPLACE INTO rehearsed_lists SELECT * FROM theirs.rehearsed_lists")
        database.commit()
    finally:
        database.close()


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.catalog", description=__doc__)
    Output.add_arguments(parser)
    parser.add_argument("--home", type=Path, help="take what servers list from this installation, where it is known")
    parser.add_argument("--way", choices=["warm", "cold"], help="only this one")
    parser.add_argument("keys", nargs="*", help="of servers; default: all that are verified")
    arguments = parser.parse_args()
    shipped: Catalog = make_catalog(Settings(home=Path(os.devnull)))
    wanted = [one for one in shipped if (one.key in arguments.keys if arguments.keys else one.verified)]
    ways = [way for way in WAYS if arguments.way in (None, way.name.split()[0].rstrip(","))]

    client = docker.APIClient()
    floor = EngineFloor(client, sandbox_images(Settings()))

    def sections() -> Iterator[Section]:
        with installed() as bed:
            rehearse(bed, [definition.key for definition in wanted], arguments.home)
            yield from measure(bed, floor, wanted, ways)

    run(sections, client, Output.of("make bench-catalog", arguments), limit_s=_RUN_LIMIT_S)


if __name__ == "__main__":
    main()
