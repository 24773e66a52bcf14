"""What a container engine does for work that runs to its end beside the pods, and for volumes of all installations.

Like `interface`, this knows nothing of what the work is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from app.engines.interface import File, Limits

Report = Callable[[str], None]
"""Takes the last line of output whenever there is a new one. Called in the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """A container that runs to its end, as root without more privileges, on the network of pods with egress."""

    name: str
    """What is done, `[a-z0-9-]+`: at any time at most one job of a name runs on the whole engine."""
    image: str
    command: tuple[str, ...]
    """The program and its arguments; the image's own entrypoint is left out."""
    limits: Limits
    timeout_s: int
    """The job is ended after it, whatever has become of the control plane."""
    files: tuple[File, ...] = ()
    shared: Mapping[str, str]
    """Shared volume -> where the job may write to it."""
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    exit_code: int | None
    """124 or 137 after the time-out. None if somebody else who waited for the same job took the outcome."""
    output: str
    """The last lines of stdout and stderr."""


class Jobs(Protocol):
    """Every verb raises EngineUnavailable when the engine does not answer, and EngineError when it refuses."""

    async def run(self, spec: JobSpec, report: Report) -> JobOutcome:
        """Run a job and wait for its end.

        If one of its name runs already, on whoever's behalf, that one is waited for instead. A caller that is cancelled
        or killed leaves the job running. If it fails and all who waited for it were cancelled, whoever asks for it in
        this process within ten minutes is given that outcome instead of another run.
        Raises: ImageMissing, EngineOutOfSpace.
        """
        ...

    async def others_using(self, volume: str) -> frozenset[str]:
        """Names of the other installations of which containers have a shared volume, running or not.

        A job that has ended does not count.
        """
        ...

    async def read_shared(self, volume: str, directory: str) -> Mapping[str, bytes]:
        """Files of a shared volume below a directory, 16 MiB at most, by their path there; empty without such a one."""
        ...
