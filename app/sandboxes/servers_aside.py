"""MCP servers of a sandbox that its gateway is not told of: what they need is being fetched, or was not to be had.

In memory only: after a restart, a server that could not be had is known by its absence from the sandbox's plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from app.sandboxes.models import Sandbox, ServerStatus

_LOST = "is not there: what it needs could not be fetched when it was asked for. Ask for it again."


class ServersAside:
    def __init__(self) -> None:
        self._fetching: dict[str, dict[str, str | None]] = {}
        """Sandbox -> server -> how far it is."""
        self._failed: dict[str, dict[str, str]] = {}
        """Sandbox -> server -> why."""

    def begin(self, sandbox_id: str, keys: Iterable[str]) -> None:
        self._fetching.setdefault(sandbox_id, {}).update(dict.fromkeys(keys))

    def tell(self, sandbox_id: str, key: str, line: str) -> None:
        """Of a server that is being fetched."""
        if key in (fetching := self._fetching.get(sandbox_id, {})):
            fetching[key] = line

    def end(self, sandbox_id: str, keys: Iterable[str]) -> None:
        """They are fetched or not; what was said of them before is over."""
        for said in (self._fetching.get(sandbox_id, {}), self._failed.get(sandbox_id, {})):
            for key in keys:
                said.pop(key, None)

    def fail(self, sandbox_id: str, failures: Mapping[str, str]) -> None:
        if failures:
            self._failed.setdefault(sandbox_id, {}).update(failures)

    def forget(self, sandbox_id: str) -> None:
        self._fetching.pop(sandbox_id, None)
        self._failed.pop(sandbox_id, None)

    def states(self, sandbox: Sandbox) -> tuple[ServerStatus, ...]:
        fetching = self._fetching.get(sandbox.id, {})
        failed = self._failed.get(sandbox.id, {})
        known = sandbox.secrets.gateway.keys if sandbox.secrets.gateway is not None else frozenset()
        states = [ServerStatus(name=key, state="starting", message=line) for key, line in fetching.items()]
        lost = [key for key in sandbox.secrets.mcp if key not in known and key not in fetching]
        states += [ServerStatus(name=key, state="failed", message=failed.get(key, _LOST)) for key in lost]
        return tuple(states)
