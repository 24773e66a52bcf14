"""Which hosts one sandbox may reach."""

from __future__ import annotations

from collections.abc import Iterable


class AllowedHosts:
    """Names in lower case; `*.example.com` is every name below example.com at any depth, but not itself; `*` is all."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        self._names = frozenset(pattern for pattern in self.patterns if not pattern.startswith("*"))
        self._above = frozenset(pattern[2:] for pattern in self.patterns if pattern.startswith("*."))
        self._all = "*" in self.patterns

    def __contains__(self, host: str) -> bool:
        if self._all or host in self._names:
            return True
        labels = host.split(".")
        return any(".".join(labels[i:]) in self._above for i in range(1, len(labels)))
