"""What the edge must know about sandboxes. The sandboxes' side keeps it current; the edge only looks things up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Target(Protocol):
    """A sandbox that requests can be for. Any object with these three attributes will do."""

    @property
    def sandbox_id(self) -> str: ...

    @property
    def address(self) -> str | None:
        """IP address of the sandbox's pod; None while it cannot be reached (starting, paused)."""

    @property
    def access_token(self) -> str:
        """The agent's access token, the secret in signed `/files` URLs."""


class Directory(Protocol):
    """Every sandbox that is alive."""

    def find(self, sandbox_id: str) -> Target | None:
        """One dictionary look-up: it is made for every request."""

    def __iter__(self) -> Iterator[Target]: ...
