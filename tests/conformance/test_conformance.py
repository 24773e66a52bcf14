"""The official MCP conformance suite, on the fixture directly and through the gateway.

The suite has 30 scored server scenarios at 2025-11-25 and 37 at 2026-07-28, and some that are run without being scored;
what is compared here is every check of all of them.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conformance.gateway import gateway_in_front_of, http_upstream, stdio_upstream
from tests.conformance.processes import fixture_over_http
from tests.conformance.suite import (
    LEGACY,
    MODERN,
    REVISIONS,
    Report,
    run_client_scenario,
    run_server_scenarios,
    scored_server_scenarios,
)
from tests.gateway.running_gateway import TOKEN, RunningGateway

SCORED = {LEGACY: 30, MODERN: 37}

NOT_OFFERED = {
    "server-sse-polling:server-sse-priming-event": "the gateway does not offer to resume a stream",
    "server-sse-polling:server-sse-retry-field": "the gateway does not offer to resume a stream",
    "server-sse-polling:server-sse-disconnect-resume": "the gateway does not offer to resume a stream",
}
"""Checks of a scenario that is not scored, and that no client depends on."""

_NO_KEYS = {
    "input-required-result-basic-elicitation": (
        "wants the key `user_name`; a legacy server's request has no key, so the gateway chooses one"
    ),
    "input-required-result-multiple-input-requests": (
        "wants three questions at once; a legacy server asks the second when the first is answered"
    ),
}
_ONE_SESSION = {
    "input-required-result-capability-check": (
        "wants the tool to ask only what this client can answer; a legacy server learns capabilities once per session, "
        "and on stdio all clients share the gateway's"
    ),
}
CANNOT_CROSS: Mapping[tuple[str, str], Mapping[str, str]] = {
    (LEGACY, "http"): {},
    (LEGACY, "stdio"): {},
    (MODERN, "http"): _NO_KEYS,
    (MODERN, "stdio"): _NO_KEYS | _ONE_SESSION,
}
"""Scored scenarios that cannot pass with an upstream of the other era, and why: by the client's revision and the
upstream's transport. That leaves 30 of 30 with a legacy client, and 35 and 34 of 37 with a modern one.
"""

CLIENT_SCENARIOS = [
    ("initialize", LEGACY),
    ("tools_call", LEGACY),
    ("elicitation-sep1034-client-defaults", LEGACY),
    ("sse-retry", LEGACY),
    ("tools_call", MODERN),
    ("request-metadata", MODERN),
    ("sep-2322-client-request-state", MODERN),
    ("http-standard-headers", MODERN),
    ("http-custom-headers", MODERN),
    ("http-invalid-tool-headers", MODERN),
    ("json-schema-ref-no-deref", MODERN),
]
"""Every client scenario but those of OAuth."""


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_fixture_passes_every_scored_scenario_without_a_gateway(
    direct: Mapping[str, Report], revision: str
) -> None:
    scored = scored_server_scenarios(revision)
    report = direct[revision]
    assert len(scored) == SCORED[revision]
    assert set(scored) <= report.checks.keys()
    assert not report.failed() & set(scored), report.explain(scored)


@pytest.mark.parametrize("upstream", ["http", "stdio"])
@pytest.mark.parametrize("revision", REVISIONS)
def test_no_check_is_lost_through_the_gateway(
    direct: Mapping[str, Report], revision: str, upstream: str, tmp_path: Path
) -> None:
    with gateway_over(upstream, "both", tmp_path) as gateway:
        through = run_server_scenarios(gateway.url, revision, results=tmp_path / "results", token=TOKEN)
    lost = through.lost_against(direct[revision])
    unexpected = [f"{check} {now}" for check, now in sorted(lost.items()) if check not in NOT_OFFERED]
    assert not unexpected, "\n".join(unexpected)


@pytest.mark.parametrize("upstream", ["http", "stdio"])
@pytest.mark.parametrize(("revision", "era"), [(LEGACY, "modern"), (MODERN, "legacy")])
def test_only_what_cannot_be_translated_fails_across_eras(
    conformance_suite: None, revision: str, era: str, upstream: str, tmp_path: Path
) -> None:
    with gateway_over(upstream, era, tmp_path) as gateway:
        report = run_server_scenarios(gateway.url, revision, results=tmp_path / "results", token=TOKEN)
    scored = set(scored_server_scenarios(revision))
    assert scored <= report.checks.keys()
    failed = report.failed() & scored
    expected = CANNOT_CROSS[revision, upstream].keys()
    assert failed <= expected, report.explain(failed - expected)
    assert failed == expected, f"these pass now, take them off the list: {expected - failed}"


@pytest.mark.parametrize(("scenario", "revision"), CLIENT_SCENARIOS)
def test_the_gateway_passes_as_a_client_of_the_suites_server(
    conformance_suite: None, scenario: str, revision: str, tmp_path: Path
) -> None:
    command = f"{sys.executable} -m tests.conformance.client_under_test"
    report = run_client_scenario(command, scenario, revision, results=tmp_path / "results")
    assert not report.failed(), report.explain(report.failed())


@contextmanager
def gateway_over(upstream: str, era: str, folder: Path) -> Iterator[RunningGateway]:
    """A gateway in front of a fixture of its own that speaks this era ("both", "legacy" or "modern")."""
    if upstream == "stdio":
        with gateway_in_front_of(stdio_upstream(era), folder) as gateway:
            yield gateway
    else:
        with (
            fixture_over_http(folder / "fixture.log", era) as url,
            gateway_in_front_of(http_upstream(url), folder) as gateway,
        ):
            yield gateway
