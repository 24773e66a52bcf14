"""How two runs of the suite are compared, without running it."""

from tests.conformance.suite import Check, Report


def report(*checks: tuple[str, str]) -> Report:
    return Report({"scenario": tuple(Check(id, id.title(), status, "because") for id, status in checks)})


def test_a_check_that_fails_is_skipped_or_is_not_reached_any_more_is_lost() -> None:
    before = report(("failing", "SUCCESS"), ("skipped", "SUCCESS"), ("gone", "SUCCESS"), ("same", "SUCCESS"))
    now = report(("failing", "FAILURE"), ("skipped", "SKIPPED"), ("same", "SUCCESS"))
    assert now.lost_against(before) == {
        "scenario:failing": "FAILURE: because",
        "scenario:skipped": "SKIPPED: because",
        "scenario:gone": "was not reached",
    }


def test_a_check_that_did_not_succeed_before_cannot_be_lost() -> None:
    before = report(("failing", "FAILURE"), ("skipped", "SKIPPED"), ("telling", "INFO"))
    assert report(("failing", "FAILURE")).lost_against(before) == {}


def test_a_repeated_check_counts_as_its_worst_occurrence() -> None:
    before = report(("repeated", "SUCCESS"), ("repeated", "SUCCESS"))
    now = report(("repeated", "SUCCESS"), ("repeated", "WARNING"), ("repeated", "SUCCESS"))
    assert now.lost_against(before) == {"scenario:repeated": "WARNING: because"}


def test_a_scenario_fails_with_one_failing_check_and_not_with_warnings() -> None:
    assert report(("one", "SUCCESS"), ("two", "FAILURE")).failed() == {"scenario"}
    assert report(("one", "SUCCESS"), ("two", "WARNING"), ("three", "SKIPPED")).failed() == frozenset()
