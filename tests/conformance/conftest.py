"""What the conformance tests share: the installed suite, and what it says about the fixture without a gateway."""

from collections.abc import Mapping

import pytest

from tests.conformance import suite
from tests.conformance.processes import fixture_over_http
from tests.conformance.suite import Report


@pytest.fixture(scope="session")
def conformance_suite() -> None:
    suite.install()


@pytest.fixture(scope="session")
def direct(conformance_suite: None, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Report]:
    """By revision: the suite run on the fixture itself, over HTTP."""
    reports = {}
    for revision in suite.REVISIONS:
        folder = tmp_path_factory.mktemp(f"direct-{revision}")
        with fixture_over_http(folder / "fixture.log") as url:
            reports[revision] = suite.run_server_scenarios(url, revision, results=folder / "results")
    return reports
