"""Fixtures and the size of the storms: small by default, full with `--storm`."""

from __future__ import annotations

import pytest

from tests.in_process import clock, control_plane, engine, pods, start_control_plane

__all__ = ["clock", "control_plane", "engine", "pods", "start_control_plane"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--storm", action="store_true", help="run the load tests at full size")


@pytest.fixture(scope="session")
def is_full_size(request: pytest.FixtureRequest) -> bool:
    # Unknown where the tests were not named on the command line, as in a run of all tests.
    return bool(request.config.getoption("--storm", default=False))
