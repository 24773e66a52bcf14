"""Storms on a real engine: more creates than pods wait, kills among them, a control plane and an engine that fail."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog

from tests.e2e.installation import Installation
from tests.load.installations import (
    Answer,
    client,
    create,
    create_at_once,
    run_in_each,
    summary,
    wait_until_at_rest,
)
from tests.load.unreliable_door import UnreliableDoor

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(1200)]

_log = structlog.get_logger()

DOCUMENTED = {201, 500, 503, 507}
"""What a create with a valid body may answer, by docs/api.md."""


@pytest.fixture
def creates(is_full_size: bool) -> int:
    return 200 if is_full_size else 12


@pytest.fixture
def installation(tmp_path: Path, is_full_size: bool) -> Iterator[Installation]:
    installation = Installation(tmp_path / "home", {"SANDGATE_POOL": "base=10" if is_full_size else "base=3"})
    yield installation
    if (installation.home / "installation").exists():
        installation.remove()


def pool_size(installation: Installation) -> int:
    return int(installation.settings["SANDGATE_POOL"].partition("=")[2])


def log_has_no_traceback(installation: Installation) -> bool:
    return "Traceback" not in installation.log.read_text()


def test_a_claim_storm_is_answered_and_leaks_nothing(installation: Installation, creates: int) -> None:
    installation.start()
    size = pool_size(installation)
    wait_until_at_rest(installation, least_waiting=size)
    answers = create_at_once(installation, creates)
    _log.info("storm_answered", **summary(answers))
    assert {answer.status for answer in answers} <= DOCUMENTED
    created = [answer.sandbox_id for answer in answers if answer.status == 201]
    assert len(created) >= size
    assert len(set(created)) == len(created)
    assert set(installation.sandboxes()) <= set(created)
    run_in_each(installation, created)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(installation.delete, created))
    wait_until_at_rest(installation, least_waiting=size)
    assert installation.sandboxes() == []
    assert log_has_no_traceback(installation)


def test_sandboxes_killed_among_claims_leave_nothing(installation: Installation, creates: int) -> None:
    installation.start()
    wait_until_at_rest(installation, least_waiting=pool_size(installation))

    def create_and_kill(number: int) -> Answer:
        answer = create(http)
        if answer.status == 201 and number % 2:
            installation.delete(answer.sandbox_id)
        return answer

    with client(installation) as http, ThreadPoolExecutor(creates) as threads:
        answers = list(threads.map(create_and_kill, range(creates)))
    _log.info("storm_answered", **summary(answers))
    assert {answer.status for answer in answers} <= DOCUMENTED
    survivors = [a.sandbox_id for number, a in enumerate(answers) if a.status == 201 and not number % 2]
    run_in_each(installation, survivors)
    wait_until_at_rest(installation, least_waiting=pool_size(installation))
    assert log_has_no_traceback(installation)


@pytest.mark.parametrize("delay_s", [0.3, 1.5])
def test_a_control_plane_killed_under_load_leaks_nothing(
    installation: Installation, is_full_size: bool, delay_s: float
) -> None:
    installation.start()
    wait_until_at_rest(installation, least_waiting=pool_size(installation))
    answers: list[Answer] = []
    load = threading.Thread(target=lambda: answers.extend(create_at_once(installation, 20 if is_full_size else 8)))
    load.start()
    time.sleep(delay_s)  # the moment of the fault, which waits for nothing
    installation.kill()
    load.join(timeout=120)
    _log.info("storm_answered", **summary(answers))
    assert {answer.status for answer in answers} <= {0, 201}
    installation.start()
    promised = {answer.sandbox_id for answer in answers if answer.status == 201}
    wait_until_at_rest(installation, least_waiting=pool_size(installation))
    survivors = installation.sandboxes()
    assert promised <= set(survivors)
    run_in_each(installation, survivors)
    assert log_has_no_traceback(installation)


async def test_an_engine_that_cuts_and_delays_connections_costs_creates_and_leaks_nothing(
    installation: Installation, is_full_size: bool, tmp_path: Path
) -> None:
    door = UnreliableDoor(tmp_path / "engine.sock", seed=1)
    installation.settings = {**installation.settings, "DOCKER_HOST": door.url}
    await door.open()
    try:
        await asyncio.to_thread(installation.start)
        await asyncio.to_thread(wait_until_at_rest, installation, least_waiting=pool_size(installation))
        async with door.trouble():
            answers = await asyncio.to_thread(create_at_once, installation, 40 if is_full_size else 8)
        assert door.cuts > 0
        _log.info("storm_answered", **summary(answers))
        assert {answer.status for answer in answers} <= DOCUMENTED
        created = [answer.sandbox_id for answer in answers if answer.status == 201]
        await asyncio.to_thread(wait_until_at_rest, installation, least_waiting=pool_size(installation))
        await asyncio.to_thread(run_in_each, installation, created)
        assert log_has_no_traceback(installation)
    finally:
        await asyncio.to_thread(installation.kill)
        await door.shut()
