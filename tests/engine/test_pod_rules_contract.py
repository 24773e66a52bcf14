"""What every engine promises of the network rules of a pod, whether or not there is a network to rule."""

from __future__ import annotations

import pytest

from app.engines.in_memory_engine import InMemoryEngine
from app.engines.interface import ALL_TRAFFIC, EgressRules
from app.errors import EngineError, EngineUnavailable, PodGone
from tests.engine.subjects import Subject, container, pod

pytestmark = pytest.mark.asyncio(loop_scope="session")

_CLOSED = EgressRules(denied=(ALL_TRAFFIC,))


async def test_rules_are_given_to_a_pod_that_runs_sleeps_or_is_halted(subject: Subject) -> None:
    await subject.engine.start(pod("ruled", container(subject.image), egress_rules=_CLOSED))
    await subject.engine.set_network("ruled", EgressRules())
    await subject.engine.pause("ruled")
    await subject.engine.set_network("ruled", _CLOSED)
    await subject.engine.halt("ruled")
    await subject.engine.set_network("ruled", _CLOSED)
    await subject.engine.stop("ruled")


async def test_a_pod_that_is_not_there_cannot_be_given_rules(subject: Subject) -> None:
    with pytest.raises(PodGone):
        await subject.engine.set_network("nobody", _CLOSED)


async def test_a_pod_without_a_way_out_takes_only_rules_that_open_nothing(subject: Subject) -> None:
    await subject.engine.start(pod("offline", container(subject.image), egress=False))
    await subject.engine.set_network("offline", _CLOSED)
    with pytest.raises(EngineError, match="without a way out"):
        await subject.engine.set_network("offline", EgressRules())


async def test_an_engine_in_memory_shows_the_rules_a_pod_has() -> None:
    engine = InMemoryEngine({"image:1": {}})
    await engine.start(pod("ruled", container("image:1")))
    await engine.set_network("ruled", _CLOSED)
    assert engine.spec_of("ruled").egress_rules == _CLOSED
    engine.is_away = True
    with pytest.raises(EngineUnavailable):
        await engine.set_network("ruled", EgressRules())
