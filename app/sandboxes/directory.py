"""The sandboxes of this process, in memory: what a request for a sandbox is looked up in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from app.sandboxes.models import LiveSandbox


class Directory:
    def __init__(self) -> None:
        self._live: dict[str, LiveSandbox] = {}
        self._awaited: set[str] = set()
        self._change_listeners: list[Callable[[str, LiveSandbox | None], None]] = []
        self._cut_off_listeners: list[Callable[[str], None]] = []

    def find(self, sandbox_id: str) -> LiveSandbox | None:
        return self._live.get(sandbox_id)

    def __iter__(self) -> Iterator[LiveSandbox]:
        return iter(tuple(self._live.values()))

    @property
    def awaited(self) -> Collection[str]:
        """Ids of sandboxes that are alive by their rows and that this process has not taken up yet."""
        return self._awaited

    def expect(self, sandbox_ids: Iterable[str]) -> None:
        """These are alive: until each is put or removed, nobody is to be told that there is no such sandbox."""
        self._awaited.update(sandbox_ids)

    def put(self, live: LiveSandbox) -> None:
        """Add a sandbox, or replace what is known of it."""
        self._awaited.discard(live.sandbox_id)
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
        was_awaited = sandbox_id in self._awaited
        self._awaited.discard(sandbox_id)
        if self._live.pop(sandbox_id, None) is not None or was_awaited:
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
