"""The sandboxes of this process, in memory: what a request for a sandbox is looked up in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from app.sandboxes.models import LiveSandbox


class Directory:
    def __init__(self) -> None:
        self._live: dict[str, LiveSandbox] = {}
        self._change_listeners: list[Callable[[str, LiveSandbox | None], None]] = []
        self._cut_off_listeners: list[Callable[[str], None]] = []

    def find(self, sandbox_id: str) -> LiveSandbox | None:
        return self._live.get(sandbox_id)

    def __iter__(self) -> Iterator[LiveSandbox]:
        return iter(tuple(self._live.values()))

    def put(self, live: LiveSandbox) -> None:
        """Add a sandbox, or replace what is known of it."""
        before = self._live.get(live.sandbox_id)
        self._live[live.sandbox_id] = live
        self._tell_change(live.sandbox_id, live)
        if before is not None and before.address is not None and before.address != live.address:
            self._tell_cut_off(live.sandbox_id)

    def change(self, sandbox_id: str, **fields: object) -> None:
        """Replace fields of a sandbox that is still there. What else became known of it meanwhile stays."""
        if (live := self._live.get(sandbox_id)) is not None:
            self._live[sandbox_id] = replace(live, sandbox=replace(live.sandbox, **fields))  # type: ignore[arg-type]

    def remove(self, sandbox_id: str) -> None:
        """Nothing more is routed to this sandbox."""
        if self._live.pop(sandbox_id, None) is not None:
            self._tell_change(sandbox_id, None)
            self._tell_cut_off(sandbox_id)

    def on_change(self, listener: Callable[[str, LiveSandbox | None], None]) -> None:
        """Tell `listener` each time what is known of a sandbox changes, and what it is now; None: it is gone."""
        self._change_listeners.append(listener)

    def on_cut_off(self, listener: Callable[[str], None]) -> None:
        """Tell `listener` each time a sandbox is removed or is no longer where it was reached."""
        self._cut_off_listeners.append(listener)

    def _tell_change(self, sandbox_id: str, live: LiveSandbox | None) -> None:
        for listener in self._change_listeners:
            listener(sandbox_id, live)

    def _tell_cut_off(self, sandbox_id: str) -> None:
        for listener in self._cut_off_listeners:
            listener(sandbox_id)
