"""`python -m tests.bench`: Sandgate beside the engine's own floor and beside a direct call, in one run.

Needs a Docker Engine, the sandbox images and root (memory of other users' processes). Everything is measured on an
installation of the bench's own; nothing of it is left at the end, nor after Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import docker

from app.main import sandbox_images
from app.settings import Settings
from tests.bench import commands, creates, footprint, machine, tool_calls
from tests.bench.bed import Bed, installed
from tests.bench.engine_floor import EngineFloor
from tests.bench.results import Report, Section

RUN_LIMIT_S = 300


def parts(client: docker.APIClient, rounds: int, seconds: float) -> dict[str, Callable[[Bed], Iterator[Section]]]:
    """What can be measured, by the name it is asked for with, in the order of a whole run."""
    floor = EngineFloor(client, sandbox_images(Settings()))
    return {
        "control-plane": lambda bed: footprint.control_plane(bed, wanted=3),
        "creates": lambda bed: creates.measure(bed, floor, wanted=rounds),
        "commands": lambda bed: commands.measure(bed, seconds=3.0),
        "tool-calls": lambda bed: tool_calls.measure(bed, wanted=rounds, seconds=seconds),
        "rest": lambda bed: footprint.sandbox_at_rest(bed, idle_s=10.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--json", type=Path, help="write what is measured to this file, too, whole or cut short")
    parser.add_argument("--markdown", type=Path, help="and to this one as tables")
    parser.add_argument("--rounds", type=int, default=5, help="of creates and of load")
    parser.add_argument("--seconds", type=float, default=0.8, help="of load in each round, for each way")
    parser.add_argument("parts", nargs="*", help="control-plane, creates, commands, tool-calls or rest; default is all")
    arguments = parser.parse_args()
    # The limit acts as Ctrl-C does: everything that was started is ended on the way out.
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.alarm(RUN_LIMIT_S)
    client = docker.APIClient()
    report = Report(machine.describe(client))
    try:
        measure(report, arguments.parts, parts(client, arguments.rounds, arguments.seconds))
    finally:
        client.close()
        if arguments.json:
            report.write_json(arguments.json)
        if arguments.markdown:
            report.write_markdown(arguments.markdown)


def measure(report: Report, only: Collection[str], parts: Mapping[str, Callable[[Bed], Iterator[Section]]]) -> None:
    """Add to the report part by part, so that it holds what there is when the run is cut short."""
    began = time.monotonic()
    print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in report.machine.items()), end="\n\n")
    with installed() as bed:
        for name, part in parts.items():
            if not only or name in only:
                for section in part(bed):
                    report.add(section)
                report.machine |= {
                    "load_average_after": machine.load_average(),
                    "took_s": round(time.monotonic() - began),
                }
    print(f"load average: {report.machine['load_average_after']}, took {report.machine['took_s']} s")


if __name__ == "__main__":
    main()
