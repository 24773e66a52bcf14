"""What was measured: rows for people as a table, the same rows for programs as JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_COLUMNS = ("what", "ratio", "p50", "best", "p99", "unit", "n", "target")


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    value: float
    unit: str
    best: float | None = None
    """Same unit: of the single values, or of the rounds' medians. Least disturbed by what else runs on the machine."""
    p99: float | None = None
    """Same unit; the largest value where there are fewer than a hundred."""
    n: int = 1
    """How many values stand behind `value`, which is their median, or that of the rounds' medians."""
    ratio: float | None = None
    """To the row above it that has the ratio 1."""
    target: str = ""
    """The design target, as docs/ARCHITECTURE.md has it."""


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    """What has to be said below the table, a sentence each."""


@dataclass(slots=True)
class Report:
    machine: dict[str, Any]
    sections: list[Section] = field(default_factory=list)

    def add(self, section: Section) -> None:
        self.sections.append(section)
        print_section(section)

    def write_json(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def write_markdown(self, path: Path, name: str) -> None:
        """As in docs/performance.md: in place of what stands between the marks of `name`, or as a file of its own."""
        text = "\n".join(self._markdown())
        opening, closing = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        page = path.read_text() if path.exists() else ""
        before, opened, rest = page.partition(opening)
        _, closed, after = rest.partition(closing)
        path.write_text(f"{before}{opened}{text}{closed}{after}" if opened and closed else text)

    def _markdown(self) -> list[str]:
        lines = [", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.machine.items()), ""]
        for section in self.sections:
            lines += [f"**{section.title}**", "", f"| {' | '.join(_COLUMNS)} |"]
            lines += [f"|---|{'---:|' * 4}---|---:|---|"]
            lines += [f"| {' | '.join(_cells(row))} |" for row in section.rows]
            lines.append("")
            if section.notes:
                lines += [*(f"* {note}" for note in section.notes), ""]
        return lines


def distribution(what: str, values: Sequence[float], unit: str, *, base: float | None = None, target: str = "") -> Row:
    """The median with the 99th percentile, and the ratio to `base` if there is one."""
    median = statistics.median(values)
    ratio = None if base is None else median / base
    return Row(
        what, median, unit, best=min(values), p99=percentile(values, 99), n=len(values), ratio=ratio, target=target
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that is not below `percent` of all (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def print_section(section: Section) -> None:
    table = Table(title=section.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("what", "unit", "target") else "right")
    for row in section.rows:
        table.add_row(*_cells(row))
    Console(width=150, highlight=False, markup=False).print(
        table, *(f"* {note}" for note in section.notes), "", sep="\n"
    )


def _cells(row: Row) -> list[str]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    numbers = [_number(value) for value in (row.value, row.best, row.p99)]
    return [row.what, ratio, *numbers, row.unit, str(row.n), row.target]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
