"""What a container engine does for a program that runs once beside a pod, in a container made for it and gone with it.

Like `interface`, this knows nothing of what the program is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from app.engines.interface import Limits, VolumeMount

MIB = 1024 * 1024
MOST_OUTPUT = 64 * MIB
"""A program that has written more, kept or not, is ended."""

EndedBy = Literal["itself", "time-out", "memory", "output"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """No capability, no more privileges, no input: what it writes is all that is left of it."""

    image: str
    command: tuple[str, ...] | None = None
    """Arguments after the image's entrypoint; None keeps the image's own command."""
    limits: Limits
    timeout_s: float
    """For the whole of it, the making of its container included."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    user: str | None = None
    mounts: tuple[VolumeMount, ...] = ()
    """Each must be there."""
    has_network: bool = True
    """Whether it is in the pod's network namespace. False: it has nothing but a loopback of its own."""
    stdout_limit: int = MIB
    """Bytes that are kept, the first ones."""
    stderr_limit: int = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a program wrote on one stream."""

    content: bytes = field(default=b"", repr=False)
    is_cut: bool = False
    """There was more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    exit_code: int | None
    """128 and the signal's number for one that was killed; None if it never came to run."""
    stdout: Output = Output()
    stderr: Output = Output()
    ended_by: EndedBy = "itself"
    """`memory`: it needed more than its limit; `output`: it wrote more than `MOST_OUTPUT`."""


class OutputKeeper:
    """Takes what a program writes, and keeps the beginning of each stream."""

    def __init__(self, spec: RunSpec) -> None:
        self._stdout = _Kept(spec.stdout_limit)
        self._stderr = _Kept(spec.stderr_limit)
        self._taken = 0

    def take(self, stdout: bytes = b"", stderr: bytes = b"") -> bool:
        """False once the program has written too much."""
        self._stdout.take(stdout)
        self._stderr.take(stderr)
        self._taken += len(stdout) + len(stderr)
        return self._taken <= MOST_OUTPUT

    def outcome(self, exit_code: int | None, ended_by: EndedBy) -> RunOutcome:
        return RunOutcome(
            exit_code=exit_code, stdout=self._stdout.output(), stderr=self._stderr.output(), ended_by=ended_by
        )


class _Kept:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._content = bytearray()
        self._is_cut = False

    def take(self, data: bytes) -> None:
        room = self._limit - len(self._content)
        self._content += data[:room]
        self._is_cut = self._is_cut or len(data) > room

    def output(self) -> Output:
        return Output(content=bytes(self._content), is_cut=self._is_cut)
