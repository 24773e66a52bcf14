"""How log lines look: a line an event on stderr, JSON unless a person watches."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logging() -> None:
    """For our own events (structlog) and what libraries log (warnings and worse). Safe to repeat."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor
    # Plain tracebacks on both ways: those with local variables would print credentials.
    if sys.stderr.isatty():
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    else:
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """False for what uvicorn says when the edge breaks a stream off or refuses a WebSocket, both on purpose."""
    return record.getMessage() not in (
        "ASGI callable returned without completing response.",
        "ASGI callable returned without completing handshake.",
    )
