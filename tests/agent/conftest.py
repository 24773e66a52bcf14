from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.running_agent import RunningAgent, running_agent


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    """An initialised agent, shared by the tests of a module."""
    with running_agent(tmp_path_factory.mktemp("agent")) as started:
        assert started.initialise().status_code == 204
        yield started


@pytest.fixture
def fresh_agent(tmp_path: Path) -> Iterator[RunningAgent]:
    """An agent that nobody has initialised."""
    with running_agent(tmp_path) as started:
        yield started
