"""Scripts written for E2B's cloud, with nothing changed but their environment: each feature with each SDK."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.compatibility.features import Case, cases
from tests.e2e.compatibility.runs import Runs

pytestmark = [pytest.mark.docker, pytest.mark.e2e]


@pytest.mark.parametrize("case", tuple(cases()), ids=str)
def test_a_script_for_e2bs_cloud_does(case: Case, runs: Runs, record_property: Callable[[str, object], None]) -> None:
    failure = runs.outcome(case)
    record_property(str(case), not failure)
    if case.feature.limit is None:
        assert not failure, failure
    else:
        assert case.feature.limit.says in failure, f"it failed otherwise, or works by now: {failure}"
