from collections.abc import Iterator

import pytest

from tests.agent.running_agent import RunningAgent, running_agent


@pytest.fixture(scope="module")
def agent() -> Iterator[RunningAgent]:
    """An initialised agent, shared by the tests of a module."""
    with running_agent() as started:
        assert started.initialise().status_code == 204
        yield started


@pytest.fixture
def fresh_agent() -> Iterator[RunningAgent]:
    """An agent that nobody has initialised."""
    with running_agent() as started:
        yield started
