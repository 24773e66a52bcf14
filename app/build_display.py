"""Shows how far the build of the sandbox images is: a live bar on a terminal, a line a step elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID

from app.engines.images import BuildProgress
from app.progress_bars import make_progress

_LINE_WIDTH = 70


class BuildDisplay:
    """Use as a context manager around the build and hand `report` to it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = make_progress(console)
        self._bars: dict[str, TaskID] = {}
        self._told: BuildProgress | None = None

    def __enter__(self) -> Self:
        self._console.print("Building the sandbox images; the first time takes some minutes.")
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def report(self, now: BuildProgress) -> None:
        if self._console.is_terminal:
            self._move_bar(now)
        elif self._told is None or (now.image, now.step) != (self._told.image, self._told.step):
            self._console.print(f"{now.image} {now.step}/{now.steps} {now.line}", markup=False)
        self._told = now

    def _move_bar(self, now: BuildProgress) -> None:
        if now.image not in self._bars:
            for earlier in self._bars.values():
                self._progress.update(earlier, completed=self._progress.tasks[earlier].total, line="done")
            self._bars[now.image] = self._progress.add_task(now.image, total=now.steps or None, line="")
        line = escape(now.line.strip()[:_LINE_WIDTH])
        self._progress.update(self._bars[now.image], completed=now.step, total=now.steps or None, line=line)
