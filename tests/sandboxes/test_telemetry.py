"""Samples of what sandboxes use: at once when somebody asks, seldom when nobody does, and gone with the sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from app.errors import NotFound
from app.sandboxes.pod_clients import AgentClient
from app.sandboxes.telemetry import Metrics
from tests.in_process import Clock, ControlPlane, request
from tests.waiting import until

USAGE = {
    "ts": 1,
    "cpu_count": 2,
    "cpu_used_pct": 1.5,
    "mem_total": 1000,
    "mem_used": 200,
    "mem_cache": 30,
    "disk_used": 4,
    "disk_total": 50,
}


class Agents(httpx.AsyncBaseTransport):
    """Answers `/metrics` of every pod."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.body: object = USAGE
        self.is_silent = False
        self.failure: Exception | None = None
        """Raised for the first that is asked."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.headers["X-Access-Token"])
        if self.is_silent:
            raise httpx.ConnectError("refused", request=request)
        if self.failure is not None and len(self.asked) == 1:
            raise self.failure
        return httpx.Response(200, json=self.body)


@pytest.fixture
def agents() -> Agents:
    return Agents()


@asynccontextmanager
async def watching(control_plane: ControlPlane, agents: Agents, clock: Clock) -> AsyncIterator[Metrics]:
    async with httpx.AsyncClient(transport=agents) as http:
        metrics = Metrics(control_plane.directory, AgentClient(http), now=clock)
        running = asyncio.create_task(metrics.run())
        try:
            yield metrics
        finally:
            running.cancel()
            await asyncio.wait([running])


async def test_a_fresh_sandbox_has_a_sample_as_soon_as_somebody_asks(
    control_plane: ControlPlane, agents: Agents, clock: Clock
) -> None:
    view = await control_plane.service.create(control_plane.team_id, request())
    async with watching(control_plane, agents, clock) as metrics:
        (sample,) = await metrics.of(control_plane.team_id, view.sandbox.id, start=None, end=None)
        assert (sample.cpu_count, sample.cpu_used_pct, sample.memory_used, sample.disk_total) == (2, 1.5, 200, 50)
        assert agents.asked == [view.sandbox.secrets.access_token]
        assert await metrics.latest(control_plane.team_id, [view.sandbox.id, "iunknown"]) == {view.sandbox.id: sample}
        assert len(agents.asked) == 1  # what is fresh is not asked for again


async def test_one_that_nobody_asks_about_is_sampled_once_and_then_left_alone(
    control_plane: ControlPlane, agents: Agents, clock: Clock
) -> None:
    await control_plane.service.create(control_plane.team_id, request())
    async with watching(control_plane, agents, clock):
        await until(lambda: agents.asked)
        await asyncio.sleep(1.5)  # a round of looking for what is due
    assert len(agents.asked) == 1


async def test_a_range_of_time_is_a_range_of_samples(control_plane: ControlPlane, agents: Agents, clock: Clock) -> None:
    team_id = control_plane.team_id
    sandbox_id = (await control_plane.service.create(team_id, request(timeout_s=3600))).sandbox.id
    async with watching(control_plane, agents, clock) as metrics:
        (sample,) = await metrics.of(team_id, sandbox_id, start=None, end=None)
        later, earlier = sample.at + timedelta(seconds=1), sample.at - timedelta(seconds=1)
        assert await metrics.of(team_id, sandbox_id, start=later, end=None) == []
        assert await metrics.of(team_id, sandbox_id, start=None, end=earlier) == []
        assert await metrics.of(team_id, sandbox_id, start=earlier, end=later) == [sample]


async def test_samples_are_kept_while_paused_and_gone_with_the_sandbox(
    control_plane: ControlPlane, agents: Agents, clock: Clock
) -> None:
    team_id = control_plane.team_id
    sandbox_id = (await control_plane.service.create(team_id, request())).sandbox.id
    async with watching(control_plane, agents, clock) as metrics:
        (sample,) = await metrics.of(team_id, sandbox_id, start=None, end=None)
        live = control_plane.directory.find(sandbox_id)
        assert live is not None
        control_plane.directory.put(replace(live, address=None))
        assert await metrics.of(team_id, sandbox_id, start=None, end=None) == [sample]
        control_plane.directory.remove(sandbox_id)
        with pytest.raises(NotFound):
            await metrics.of(team_id, sandbox_id, start=None, end=None)
        control_plane.directory.put(live)
        assert await metrics.of(team_id, sandbox_id, start=None, end=None) != [sample]


async def test_another_team_s_sandbox_is_not_there(control_plane: ControlPlane, agents: Agents, clock: Clock) -> None:
    sandbox_id = (await control_plane.service.create(control_plane.team_id, request())).sandbox.id
    async with watching(control_plane, agents, clock) as metrics:
        with pytest.raises(NotFound):
            await metrics.of("team_other", sandbox_id, start=None, end=None)
        assert await metrics.latest("team_other", [sandbox_id]) == {}


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {**USAGE, "cpu_count": "many"},
        {**USAGE, "mem_used": None},
        {**USAGE, "cpu_used_pct": "nan"},
        {**USAGE, "cpu_used_pct": "inf"},
        {**USAGE, "cpu_used_pct": -1},
        {**USAGE, "disk_used": 1e300},
        {**USAGE, "disk_used": "inf"},
        {**USAGE, "mem_used": -1},
    ],
)
async def test_what_is_no_sample_is_a_gap(
    control_plane: ControlPlane, agents: Agents, clock: Clock, body: object
) -> None:
    agents.body = body
    sandbox_id = (await control_plane.service.create(control_plane.team_id, request())).sandbox.id
    async with watching(control_plane, agents, clock) as metrics:
        assert await metrics.of(control_plane.team_id, sandbox_id, start=None, end=None) == []


async def test_an_agent_that_does_not_answer_is_a_gap(
    control_plane: ControlPlane, agents: Agents, clock: Clock
) -> None:
    agents.is_silent = True
    sandbox_id = (await control_plane.service.create(control_plane.team_id, request())).sandbox.id
    async with watching(control_plane, agents, clock) as metrics:
        assert await metrics.of(control_plane.team_id, sandbox_id, start=None, end=None) == []


@pytest.mark.parametrize("failure", [httpx.InvalidURL("a:b"), RuntimeError("nobody thought of it")])
async def test_whatever_one_agent_does_the_others_are_sampled(
    control_plane: ControlPlane, agents: Agents, clock: Clock, failure: Exception
) -> None:
    team_id = control_plane.team_id
    for _ in range(2):
        await control_plane.service.create(team_id, request())
    agents.failure = failure
    async with watching(control_plane, agents, clock):
        await until(lambda: len(agents.asked) == 2)
        await control_plane.service.create(team_id, request())
        await until(lambda: len(agents.asked) == 3)  # by the same run of the samples in the background
