"""A Sandgate with a pool on real Docker, asked many things at once, and what has to hold of it at rest."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.e2e.installation import Installation, wait_until

ANSWER_WITHIN_S = 120.0
AT_REST_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    """0 where the connection was lost, as to a server that is killed."""
    took_s: float
    body: Any

    @property
    def sandbox_id(self) -> str:
        return str(self.body["sandboxID"])


def create(http: httpx.Client, **body: object) -> Answer:
    """Fails if there is no answer in time."""
    began = time.monotonic()
    try:
        answer = http.post("/v2/sandboxes", json={"timeout": 900, **body})
    except httpx.TimeoutException:
        raise
    except httpx.TransportError:
        return Answer(0, time.monotonic() - began, None)
    return Answer(answer.status_code, time.monotonic() - began, answer.json())


@contextmanager
def client(installation: Installation) -> Iterator[httpx.Client]:
    """For any number of threads."""
    with httpx.Client(
        base_url=installation.url,
        headers={"X-API-KEY": installation.key},
        timeout=ANSWER_WITHIN_S,
        limits=httpx.Limits(max_connections=None),
        trust_env=False,
    ) as http:
        yield http


def create_at_once(installation: Installation, count: int) -> list[Answer]:
    with client(installation) as http, ThreadPoolExecutor(count) as threads:
        return list(threads.map(lambda _: create(http), range(count)))


def run_in_each(installation: Installation, sandbox_ids: list[str]) -> None:
    """A command in each of them; fails unless all answer."""
    with ThreadPoolExecutor(8) as threads:
        outputs = threads.map(lambda i: installation.sdk(i).commands.run("echo $E2B_SANDBOX_ID").stdout, sandbox_ids)
        assert list(outputs) == [f"{sandbox_id}\n" for sandbox_id in sandbox_ids]


def waiting_pods(installation: Installation) -> int:
    """Pods that can be claimed."""
    database = sqlite3.connect(installation.home / "sandgate.db", timeout=30)
    try:
        query = "SELECT count(*) FROM pods WHERE sandbox_id IS NULL AND ready_at IS NOT NULL"
        ((count,),) = database.execute(query).fetchall()
        return int(count)
    finally:
        database.close()


def wait_until_at_rest(installation: Installation, *, least_waiting: int) -> None:
    """Every container belongs to a sandbox that runs or to a pod that waits. Sandboxes here have one container."""

    def found() -> tuple[int, int, int]:
        return len(installation.containers()), len(installation.sandboxes()), waiting_pods(installation)

    def is_so() -> bool:
        containers, sandboxes, waiting = found()
        return containers == sandboxes + waiting and waiting >= least_waiting

    wait_until(is_so, lambda: (found(), installation.log.read_text()[-5000:]), within_s=AT_REST_WITHIN_S)


def summary(answers: list[Answer]) -> dict[str, object]:
    took = sorted(answer.took_s for answer in answers)
    return {
        "statuses": dict(Counter(answer.status for answer in answers)),
        "fastest_s": round(took[0], 3),
        "median_s": round(took[len(took) // 2], 3),
        "slowest_s": round(took[-1], 3),
    }
