"""How bars of progress look on a terminal; elsewhere they stay away."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def make_progress(console: Console) -> Progress:
    """Its tasks have a field `line`, the last line of output."""
    return Progress(
        TextColumn("[bold]{task.description}[/]"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[line]}", style="dim"),
        console=console,
        disable=not console.is_terminal,
    )
