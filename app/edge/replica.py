"""What an edge worker knows of the sandboxes: a copy of the control plane's directory, kept by its messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

from app.edge.directory import Target
from app.edge.open_counts import SharedCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSandbox:
    """A `directory.Target` that can be sent: what the edge needs of a sandbox, and nothing else."""

    sandbox_id: str
    address: str | None
    may_resume: bool
    access_token: str = field(repr=False)
    dial_token: str | None = field(repr=False)
    traffic_access_token: str | None = field(repr=False)
    mask_request_host: str | None
    place: int = -1
    """Of its open requests in `open_counts`."""

    @classmethod
    def of(cls, target: Target, place: int) -> Self:
        return cls(
            sandbox_id=target.sandbox_id,
            address=target.address,
            may_resume=target.may_resume,
            access_token=target.access_token,
            dial_token=target.dial_token,
            traffic_access_token=target.traffic_access_token,
            mask_request_host=target.mask_request_host,
            place=place,
        )


class Replica:
    def __init__(self, cut_off: Callable[[str], None], counts: SharedCounts) -> None:
        """`cut_off` is called with the id of a sandbox that is removed or is no longer where it was reached."""
        self._known: dict[str, KnownSandbox] = {}
        self._awaited: set[str] = set()
        self._cut_off = cut_off
        self._counts = counts

    def find(self, sandbox_id: str) -> KnownSandbox | None:
        return self._known.get(sandbox_id)

    def __iter__(self) -> Iterator[KnownSandbox]:
        return iter(self._known.values())

    @property
    def awaited(self) -> Collection[str]:
        return self._awaited

    def fill(self, sandboxes: Iterable[KnownSandbox], awaited: Iterable[str]) -> None:
        """Take what there is to begin with."""
        self._awaited.update(awaited)
        for known in sandboxes:
            self.put(known)

    def put(self, known: KnownSandbox) -> None:
        self._awaited.discard(known.sandbox_id)
        before = self._known.get(known.sandbox_id)
        self._known[known.sandbox_id] = known
        self._counts.place(known.sandbox_id, known.place)
        if before is not None and before.address is not None and before.address != known.address:
            self._cut_off(known.sandbox_id)

    def remove(self, sandbox_id: str) -> None:
        self._awaited.discard(sandbox_id)
        if self._known.pop(sandbox_id, None) is not None:
            self._cut_off(sandbox_id)
            self._counts.forget(sandbox_id)
