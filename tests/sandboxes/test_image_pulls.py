"""Pulls that several sandboxes wait for."""

from __future__ import annotations

import pytest

from app.concurrency import all_of
from app.engines.in_memory_engine import InMemoryEngine
from app.sandboxes.background import Background
from app.sandboxes.image_pulls import ImagePulls


async def test_whoever_waits_for_a_pull_that_goes_wrong_unexpectedly_is_told() -> None:
    """A cancellation instead would pass for the waiter's own, and a task group takes no notice of that."""
    engine = InMemoryEngine({})
    engine.builds.registry["acme/shot:1"] = {}

    def break_down(line: str) -> None:
        raise ZeroDivisionError(line)

    async def wait(pulls: ImagePulls) -> None:
        await pulls.ensure("acme/shot:1", break_down)

    async with Background() as background:
        pulls = ImagePulls(engine, background.spawn)
        with pytest.raises(ZeroDivisionError):
            await all_of([wait(pulls), wait(pulls)])
