"""What a build says: taken as it comes, written to the database in batches, bounded."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

import structlog

from app.errors import SandgateError
from app.templates.models import LogLevel, LogLine
from app.templates.store import TemplateStore

MOST_LINES = 20_000
LONGEST_LINE = 2_000
_LAST_LINES = 20
_FLUSH_INTERVAL_S = 0.25
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

_log = structlog.get_logger()


class BuildLog:
    def __init__(self, store: TemplateStore, build_id: str, now: Callable[[], datetime]) -> None:
        self.step: str | None = None
        """What is said from now on belongs to this step."""
        self._store = store
        self._build_id = build_id
        self._now = now
        self._waiting: list[LogLine] = []
        self._count = 0
        self._written = 0
        self._unfinished = b""
        self._last: deque[LogLine] = deque(maxlen=_LAST_LINES)
        self._flush_lock = asyncio.Lock()

    def begin_step(self, name: str) -> None:
        self._last.clear()
        self.step = name

    def say(self, message: str, level: LogLevel = "info") -> None:
        for text in message.splitlines() or [""]:
            self._add(text, level)

    def output(self, chunk: bytes) -> None:
        """What a step printed, in any split."""
        *lines, self._unfinished = re.split(rb"\r?\n|\r", self._unfinished + chunk)
        if len(self._unfinished) > LONGEST_LINE:
            lines.append(self._unfinished)
            self._unfinished = b""
        for line in lines:
            if line:
                self._add(line.decode(errors="replace"), "info")

    def end_output(self) -> tuple[LogLine, ...]:
        """The step is over: its last lines."""
        if self._unfinished:
            self._add(self._unfinished.decode(errors="replace"), "info")
            self._unfinished = b""
        return tuple(self._last)

    @asynccontextmanager
    async def written(self) -> AsyncIterator[None]:
        """Write what was said every now and then, and at the end. What cannot be written is left for `flush`."""
        writing = asyncio.create_task(self._write_regularly(), name=f"log of build {self._build_id}")
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.wait([writing])
            await self._write()

    async def flush(self) -> None:
        """Write all that is not written yet. Safe to repeat."""
        async with self._flush_lock:
            if lines := tuple(self._waiting):
                await self._store.add_log(self._build_id, self._written, lines)
                self._written += len(lines)
                del self._waiting[: len(lines)]

    async def _write_regularly(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_INTERVAL_S)
            await asyncio.shield(self._write())

    async def _write(self) -> None:
        try:
            await self.flush()
        except Exception as error:  # noqa: BLE001 - a database that is away for a while must not end the log
            _log.warning("template_build_log_not_written", build_id=self._build_id, reason=reason_of(error))

    def _add(self, text: str, level: LogLevel) -> None:
        text = _UNPRINTABLE.sub("", text)
        if len(text) > LONGEST_LINE:
            text = f"{text[:LONGEST_LINE]} …"
        line = LogLine(at=self._now(), message=text, level=level, step=self.step)
        self._last.append(line)
        if self._count < MOST_LINES:
            self._waiting.append(line)
        elif self._count == MOST_LINES:
            self._waiting.append(
                LogLine(
                    at=line.at, message=f"The log ends here: it has {MOST_LINES} lines.", level="warn", step=self.step
                )
            )
        self._count += 1


def reason_of(error: BaseException | None) -> str:
    """Why something could not be recorded. Of errors of the driver no more than the kind: they quote what it was."""
    return str(error) if isinstance(error, SandgateError) else type(error).__name__
