"""Shows pieces of work that run side by side: a line each on a terminal, elsewhere a line when one ends."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID

from app.progress_bars import make_progress

_LINE_WIDTH = 80


class JobDisplay:
    """Use as a context manager around the work."""

    def __init__(self, console: Console, *, total: int) -> None:
        self._console = console
        self._overall = make_progress(console)
        self._all = self._overall.add_task("all", total=total, line="")
        self._done = 0
        self._total = total

    def __enter__(self) -> Self:
        self._overall.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._overall.stop()

    def begin(self, name: str) -> Job:
        return Job(self, name, self._overall.add_task(name, total=None, line=""))

    def show(self, bar: TaskID, line: str) -> None:
        self._overall.update(bar, line=escape(line.strip()[:_LINE_WIDTH]))

    def finish(self, bar: TaskID, name: str, outcome: str) -> None:
        self._done += 1
        self._overall.remove_task(bar)
        self._overall.advance(self._all)
        self._console.print(f"{self._done}/{self._total} [bold]{name}[/] {outcome}", soft_wrap=True)


class Job:
    """One of the pieces of work."""

    def __init__(self, display: JobDisplay, name: str, bar: TaskID) -> None:
        self._display = display
        self._name = name
        self._bar = bar

    def report(self, line: str) -> None:
        """The last line of its output."""
        self._display.show(self._bar, line)

    def end(self, outcome: str) -> None:
        """`outcome` may hold markup."""
        self._display.finish(self._bar, self._name, outcome)
