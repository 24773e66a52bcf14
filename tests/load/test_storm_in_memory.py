"""Everything at once, in one process: creates, and whatever can happen to sandboxes, on engines good and bad."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from app.errors import Problem
from app.sandboxes.models import Lifecycle, PauseMode
from tests.in_process import Clock, ControlPlane, StartControlPlane, request
from tests.load.consistency import assert_no_pod_had_two_sandboxes, until_consistent
from tests.load.unreliable_engine import UnreliableEngine
from tests.pods import PodTransport

ANSWER_WITHIN_S = 120.0
"""No engine of these tests hangs for longer than half a second."""
CREATES = 200
WARM = 10


class Caller:
    """Does things to sandboxes as one client would, and counts the answers."""

    def __init__(self, control_plane: ControlPlane, chance: random.Random) -> None:
        self.answers: Counter[str] = Counter()
        self.known: list[str] = []
        self._control_plane = control_plane
        self._chance = chance

    async def ask(self, verb: Callable[[], Awaitable[object]]) -> object | None:
        """None where the answer is a Problem. Fails the test for anything else, and for no answer."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                answer = await verb()
        except Problem as problem:
            self.answers[type(problem).__name__] += 1
            return None
        self.answers["done"] += 1
        return answer

    async def create(self) -> str | None:
        chance, control_plane = self._chance, self._control_plane
        fields: dict[str, Any] = {"envs": {"N": str(chance.random())}}
        if chance.random() < 0.2:
            fields["mcp"] = {"time": {}}
        if chance.random() < 0.3:
            fields["lifecycle"] = Lifecycle(on_timeout="pause", auto_resume=True)
        view = await self.ask(lambda: control_plane.service.create(control_plane.team_id, request(**fields)))
        if view is None:
            return None
        sandbox_id: str = view.sandbox.id  # type: ignore[attr-defined]
        self.known.append(sandbox_id)
        return sandbox_id

    async def meddle(self, sandbox_id: str) -> None:
        """One verb, on this sandbox."""
        service, team_id, chance = self._control_plane.service, self._control_plane.team_id, self._chance
        mode = chance.choice(list(PauseMode))
        verbs: list[Callable[[], Coroutine[Any, Any, object]]] = [
            lambda: service.pause(team_id, sandbox_id, mode),
            lambda: service.connect(team_id, sandbox_id, 60, reboot=chance.random() < 0.5),
            lambda: service.resume(team_id, sandbox_id, 60),
            lambda: service.resume_for_traffic(sandbox_id),
            lambda: service.kill(team_id, sandbox_id),
            lambda: service.set_timeout(team_id, sandbox_id, 0),
            lambda: service.set_network(team_id, sandbox_id, {"denyOut": [f"10.{chance.randrange(256)}.0.0/16"]}),
            lambda: service.change_servers(team_id, sandbox_id, {"fetch": {}}, None),
            lambda: service.get(team_id, sandbox_id),
            lambda: service.fork(team_id, sandbox_id, count=2, timeout_s=60),
        ]
        forked = await self.ask(chance.choice(verbs))
        for outcome in forked if isinstance(forked, list) else ():
            if isinstance(outcome, Problem):
                self.answers[type(outcome).__name__] += 1
            else:
                self.known.append(outcome.sandbox.id)


async def storm(control_plane: ControlPlane, chance: random.Random, clock: Clock, *, creates: int) -> Caller:
    """`creates` creates at once, each followed by things that happen to it and to others."""
    caller = Caller(control_plane, chance)

    async def one() -> None:
        sandbox_id = await caller.create()
        for _ in range(chance.randrange(6)):
            target = sandbox_id if sandbox_id is not None and chance.random() < 0.7 else chance.choice(caller.known)
            await caller.meddle(target)

    async with asyncio.TaskGroup() as group:
        for _ in range(creates):
            group.create_task(one())
    return caller


@pytest.mark.parametrize("seed", range(3))
async def test_a_claim_storm_hands_no_pod_out_twice_and_leaks_none(
    start_control_plane: StartControlPlane, pods: PodTransport, clock: Clock, seed: int
) -> None:
    chance = random.Random(seed)
    engine = UnreliableEngine(chance)
    async with start_control_plane(engine=engine, warm=WARM, sweep_interval_s=0.02) as control_plane:
        caller = await storm(control_plane, chance, clock, creates=CREATES)
        assert caller.answers["done"] > CREATES
        assert not caller.answers.keys() - {"done", "NotFound", "Conflict"}
        await until_consistent(control_plane, engine, warm=WARM)
        assert_no_pod_had_two_sandboxes(pods)
        for live in list(control_plane.directory):
            await control_plane.service.kill(control_plane.team_id, live.sandbox_id)
        await until_consistent(control_plane, engine, warm=WARM)
    assert not [image for image in engine.saved if await engine.has_image(image)]


@pytest.mark.parametrize("seed", range(3))
async def test_on_an_engine_that_fails_and_hangs_every_answer_is_a_documented_one(
    start_control_plane: StartControlPlane, pods: PodTransport, clock: Clock, seed: int
) -> None:
    chance = random.Random(seed)
    engine = UnreliableEngine(chance, trouble=0.05)
    async with start_control_plane(engine=engine, warm=WARM, sweep_interval_s=0.02) as control_plane:
        caller = await storm(control_plane, chance, clock, creates=CREATES)
        assert caller.answers["done"] > 0
        engine.calm()
        await until_consistent(control_plane, engine, warm=WARM)
        assert_no_pod_had_two_sandboxes(pods)
    async with start_control_plane(engine=engine, warm=WARM) as control_plane:
        await until_consistent(control_plane, engine, warm=WARM)
        for live in list(control_plane.directory):
            await control_plane.service.kill(control_plane.team_id, live.sandbox_id)
        await until_consistent(control_plane, engine, warm=WARM)
    assert not [image for image in engine.saved if await engine.has_image(image)]
