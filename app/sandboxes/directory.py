"""The running sandboxes of this process, in memory: what a request for a sandbox is looked up in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from app.sandboxes.models import LiveSandbox


class Directory:
    def __init__(self) -> None:
        self._live: dict[str, LiveSandbox] = {}
        self._removal_listeners: list[Callable[[str], None]] = []

    def find(self, sandbox_id: str) -> LiveSandbox | None:
        return self._live.get(sandbox_id)

    def __iter__(self) -> Iterator[LiveSandbox]:
        return iter(tuple(self._live.values()))

    def put(self, live: LiveSandbox) -> None:
        """Add a sandbox, or replace what is known of it."""
        self._live[live.sandbox_id] = live

    def remove(self, sandbox_id: str) -> None:
        """Nothing more is routed to this sandbox; listeners are told once."""
        if self._live.pop(sandbox_id, None) is not None:
            for listener in self._removal_listeners:
                listener(sandbox_id)

    def on_removal(self, listener: Callable[[str], None]) -> None:
        self._removal_listeners.append(listener)
