"""What the edge must know about sandboxes. The sandboxes' side keeps it current; the edge only looks things up."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol


class Target(Protocol):
    """A sandbox that requests can be for. Any object with these attributes will do."""

    @property
    def sandbox_id(self) -> str: ...

    @property
    def address(self) -> str | None:
        """IP address of the sandbox's pod; None while it cannot be reached (starting, paused)."""

    @property
    def may_resume(self) -> bool:
        """Whether traffic resumes it while it has no address."""

    @property
    def access_token(self) -> str:
        """The agent's access token, the secret in signed `/files` URLs."""

    @property
    def dial_token(self) -> str | None:
        """What the agent wants to see before it connects to a loopback port; None if it cannot be asked."""

    @property
    def traffic_access_token(self) -> str | None:
        """What requests to all ports but the agent's must show; None if the sandbox is open to the public."""

    @property
    def mask_request_host(self) -> str | None:
        """What services are to see as `Host`, with `${PORT}` for the port; None for what the client sent."""


class Directory(Protocol):
    """Every sandbox that is alive."""

    def find(self, sandbox_id: str) -> Target | None:
        """One dictionary look-up: it is made for every request."""

    @property
    def awaited(self) -> Collection[str]:
        """Ids of sandboxes that are alive and cannot be found yet, soon after a start."""

    def __iter__(self) -> Iterator[Target]: ...
