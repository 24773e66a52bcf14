"""What one sandbox does to another: a fork bomb, a memory hog and a disk filler beside tool calls."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles

import pytest
import structlog

from tests.e2e.installation import Installation, call, mcp_client, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(600)]

_log = structlog.get_logger()

MOST_SLOWDOWN = 5.0
"""Of the 95th percentile; far above what is usual, because the tests' machine does other things as well."""
LIMITS = {"SANDGATE_CPUS": "1", "SANDGATE_MEMORY_MIB": "256", "SANDGATE_PIDS": "128"}

VILLAINS = {
    "fork bomb": "bomb() { bomb | bomb & }; while true; do bomb; sleep 0.1; done",
    "memory hog": "while true; do python3 -c 'x = [bytearray(1 << 20) for _ in range(100000)]'; done",
    # It takes the space of 512 MiB at most: the machine is shared.
    "disk filler": "while true; do dd if=/dev/zero of=$HOME/filler bs=1M count=512 conv=fsync; rm $HOME/filler; done",
}


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    installation = Installation(tmp_path / "home", LIMITS)
    installation.start()
    yield installation
    installation.remove()


async def p95_ms(sandbox: dict[str, object], seconds: float) -> float:
    """Of tool calls, one after the other."""
    took: list[float] = []
    async with mcp_client(sandbox) as client:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.perf_counter()
            await call(client, "get_current_time", timezone="UTC")
            took.append((time.perf_counter() - began) * 1000)
    return quantiles(took, n=20)[-1]


@pytest.mark.parametrize("villain", VILLAINS)
async def test_a_villain_slows_its_neighbours_little_and_is_held_by_its_limits(
    installation: Installation, is_full_size: bool, villain: str
) -> None:
    seconds = 20.0 if is_full_size else 4.0
    neighbour = installation.create(mcp={"time": {}})
    bad_id = installation.create()["sandboxID"]
    before = await p95_ms(neighbour, seconds)
    # In a session of its own, so that it goes on without its client.
    command = f"nohup setsid bash -c {shlex.quote(VILLAINS[villain])} >/dev/null 2>&1 &"
    installation.sdk(bad_id).commands.run(command)
    during = await p95_ms(neighbour, seconds)
    began = time.monotonic()
    installation.delete(bad_id)
    wait_until(lambda: bad_id not in installation.sandboxes(), installation.sandboxes)
    wait_until(lambda: len(installation.containers()) == 2, installation.containers)
    gone_s = time.monotonic() - began
    after = await p95_ms(neighbour, seconds)
    usual = max(before, after)
    _log.info(
        "villain",
        name=villain,
        p95_ms=round(before, 2),
        beside_it_ms=round(during, 2),
        afterwards_ms=round(after, 2),
        ratio=round(during / usual, 2),
        gone_s=round(gone_s, 1),
    )
    assert during < MOST_SLOWDOWN * usual
    assert installation.sdk(str(neighbour["sandboxID"])).commands.run("echo here").stdout == "here\n"
