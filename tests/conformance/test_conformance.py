"""The official MCP conformance suite, on the fixture directly and through the gateway."""

from collections.abc import Mapping

import pytest

from tests.conformance.suite import LEGACY, MODERN, REVISIONS, Report, scored_server_scenarios


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_fixture_passes_every_scored_scenario_without_a_gateway(
    direct: Mapping[str, Report], revision: str
) -> None:
    scored = scored_server_scenarios(revision)
    report = direct[revision]
    assert len(scored) == {LEGACY: 30, MODERN: 37}[revision]
    assert set(scored) <= report.checks.keys()
    assert not report.failed() & set(scored), report.explain(scored)
