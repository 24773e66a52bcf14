"""`python -m tests.bench`: Sandgate beside the engine's own floor and beside a direct call, in one run.

Needs a Docker Engine, the sandbox images and root (memory of other users' processes). Everything is measured on an
installation of the bench's own; nothing of it is left at the end, nor after Ctrl-C.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import docker

from app.main import sandbox_images
from app.settings import Settings
from tests.bench import commands, creates, creates_at_once, footprint, growth, lifecycle, tool_calls
from tests.bench.bed import Bed, installed
from tests.bench.engine_floor import EngineFloor
from tests.bench.results import Section
from tests.bench.runs import Output, run

RUN_LIMIT_S = 600
LONG_RUN_LIMIT_S = 1200


def parts(
    client: docker.APIClient, *, rounds: int, seconds: float, most: int
) -> dict[str, Callable[[Bed], Iterator[Section]]]:
    """What can be measured, by the name it is asked for with, in the order of a whole run."""
    floor = EngineFloor(client, sandbox_images(Settings()))
    levels = sorted({level for level in growth.LEVELS if level < most} | {most})
    growth_s = 60.0 + most * 1.2
    return {
        "control-plane": lambda bed: footprint.control_plane(bed, wanted=3),
        "tool-calls": lambda bed: tool_calls.measure(bed, wanted=rounds, seconds=seconds),
        "rest": lambda bed: footprint.sandbox_at_rest(bed, idle_s=10.0),
        "creates": lambda bed: creates.measure(bed, floor, wanted=rounds),
        "commands": lambda bed: commands.measure(bed, seconds=3.0),
        "lifecycle": lambda bed: lifecycle.measure(bed, floor, wanted=max(2, rounds // 2)),
        "at-once": lambda bed: creates_at_once.measure(bed, floor, wanted=max(1, rounds // 2)),
        "growth": lambda bed: growth.measure(bed, levels=levels, budget_s=growth_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    Output.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=4, help="of creates and of load")
    parser.add_argument("--seconds", type=float, default=0.4, help="of load in each round, for each way")
    parser.add_argument(
        "--growth", type=int, default=growth.LEVELS[-1], help=f"up to so many live sandboxes; {growth.MOST} takes long"
    )
    parser.add_argument("parts", nargs="*", help="control-plane, tool-calls, rest, creates, commands, … ; default: all")
    arguments = parser.parse_args()
    client = docker.APIClient()
    wanted = parts(client, rounds=arguments.rounds, seconds=arguments.seconds, most=arguments.growth)
    if unknown := set(arguments.parts) - wanted.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}: choose from {', '.join(wanted)}")

    def measure() -> Iterator[Section]:
        with installed() as bed:
            for name, part in wanted.items():
                if not arguments.parts or name in arguments.parts:
                    yield from part(bed)

    limit_s = RUN_LIMIT_S if arguments.growth <= growth.LEVELS[-1] else LONG_RUN_LIMIT_S
    run(measure, client, Output.of("make bench", arguments), limit_s=limit_s)


if __name__ == "__main__":
    main()
