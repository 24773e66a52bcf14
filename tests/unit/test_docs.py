"""The documentation knows every setting, every error status and every make target it should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.errors import Problem
from app.settings import Settings

DOCS = Path("docs")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    assert f"`SANDGATE_{name.upper()}`" in (DOCS / "operations.md").read_text()


@pytest.mark.parametrize("problem", Problem.__subclasses__(), ids=lambda problem: problem.__name__)
def test_every_status_a_caller_can_get_is_documented(problem: type[Problem]) -> None:
    assert f"| {problem.status} |" in (DOCS / "api.md").read_text()


def test_links_between_pages_lead_somewhere() -> None:
    for page in (Path("README.md"), *DOCS.rglob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page} links to {target}"
