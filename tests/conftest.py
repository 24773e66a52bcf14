"""What holds for every test."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from app.logs import configure_logging

_FOLDERS = ("e2e/compatibility", "e2e", "engine", "conformance", "database")
"""Those whose files share what takes long to set up."""
_LONGEST_FIRST = {folder: place for place, folder in enumerate(_FOLDERS)}


def pytest_configure() -> None:
    # The default of structlog shows local variables in tracebacks, which takes seconds and prints credentials.
    configure_logging()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """For runs in several processes: a file stays in one of them, a folder that shares something too."""
    return _ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first."""
    items.sort(key=lambda item: _LONGEST_FIRST.get(_group(item.nodeid), len(_LONGEST_FIRST)))


class _ByGroup(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


def _group(nodeid: str) -> str:
    file = nodeid.partition("::")[0].removeprefix("tests/")
    return next((folder for folder in _FOLDERS if file.startswith(f"{folder}/")), file)
