"""docs/compatibility.md says what the tests hold, feature by feature and SDK by SDK."""

from __future__ import annotations

from tests.e2e.compatibility.page import PAGE, expected, render


def test_the_page_is_what_the_tests_observe_when_they_pass() -> None:
    assert PAGE.read_text() == render(expected()), "run `make compatibility`"
