"""What holds for every test."""

from __future__ import annotations

from app.logs import configure_logging


def pytest_configure() -> None:
    # The default of structlog shows local variables in tracebacks, which takes seconds and prints credentials.
    configure_logging()
