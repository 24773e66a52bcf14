"""One run of a benchmark: bounded in time, printed as it goes, and written down whole or cut short."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker

from tests.bench import machine
from tests.bench.results import Report, Section


@dataclass(frozen=True, slots=True)
class Output:
    name: str
    """What the marks in the page are called."""
    json: Path | None
    markdown: Path | None

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", type=Path, help="write what is measured to this file, too, whole or cut short")
        parser.add_argument(
            "--markdown", type=Path, help="and to this one as tables; a page that has marks for them keeps all else"
        )

    @classmethod
    def of(cls, name: str, arguments: argparse.Namespace) -> Output:
        return cls(name, arguments.json, arguments.markdown)


def run(measure: Callable[[], Iterator[Section]], client: docker.APIClient, output: Output, *, limit_s: int) -> Report:
    """Ends by itself after `limit_s`, as Ctrl-C would end it: everything that was started is ended on the way out."""
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.alarm(limit_s)
    began = time.monotonic()
    report = Report(machine.describe(client))
    print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in report.machine.items()), end="\n\n")
    try:
        for section in measure():
            report.add(section)
            report.machine |= {
                "load_average_after": machine.load_average(),
                "took_s": round(time.monotonic() - began),
            }
    finally:
        client.close()
        if output.json is not None:
            report.write_json(output.json)
        if output.markdown is not None:
            report.write_markdown(output.markdown, output.name)
    print(f"load average: {report.machine['load_average_after']}, took {report.machine['took_s']} s")
    return report
