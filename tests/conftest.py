"""What holds for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.logs import configure_logging

_ROOT = Path(__file__).parent
_FOLDERS = ("e2e/compatibility", "e2e", "engine", "conformance", "database")
"""Those whose files share what takes long to set up."""


def pytest_configure() -> None:
    # The default of structlog shows local variables in tracebacks, which takes seconds and prints credentials.
    configure_logging()


@pytest.hookimpl(tryfirst=True)  # before the plugin that reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For runs in several processes: a file stays in one of them, a folder that shares something too.

    What takes longest begins first.
    """
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: _FOLDERS.index(groups[item]) if groups[item] in _FOLDERS else len(_FOLDERS))


def _group(item: pytest.Item) -> str:
    path = item.path.relative_to(_ROOT).as_posix()
    return next((folder for folder in _FOLDERS if path.startswith(f"{folder}/")), path)
