"""Runs the tests of this folder and writes docs/compatibility.md from what they observed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.e2e.compatibility.page import PAGE, render


class Recorder:
    def __init__(self) -> None:
        self.observed: dict[str, bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.observed |= {name: bool(worked) for name, worked in report.user_properties}


def main() -> int:
    recorder = Recorder()
    folder = Path(__file__).parent
    # The old page must not fail the run that replaces it.
    code = pytest.main([str(folder), f"--ignore={folder / 'test_page.py'}"], plugins=[recorder])
    if code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        PAGE.write_text(render(recorder.observed))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
