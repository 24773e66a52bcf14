"""What the rest of the gateway knows of a connection to an MCP server, whichever door it goes through."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from sandgate_gateway.callers import Caller
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.protocol import Era

Listener = Callable[[str, dict[str, Any]], None]
"""Takes the method and params of a notification that belongs to no request: list_changed, updated, background logs."""


class ConnectionEndedError(Exception):
    """The server is gone; the message says how, in words that follow its name: "exited with code 1"."""


class CouldNotConnectError(ConnectionEndedError):
    """The server could not be reached. `final` tells whether trying again can help."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class NotDeliveredError(ConnectionEndedError):
    """The session was over before the request reached the server: it can be sent again on another one."""


class OldTransportError(CouldNotConnectError):
    """The server does not speak streamable HTTP, but the HTTP+SSE transport before it."""


class Connection(ABC):
    """One opened way to one server. Speaks JSON-RPC; which era it speaks is told by `era` once `open` has returned."""

    era: Era = "legacy"
    protocol_version: str = ""
    capabilities: dict[str, Any]
    instructions: str = ""

    @property
    def oddity(self) -> str | None:
        """What is odd about the server's output so far, in words that follow "it"; None if nothing is."""
        return None

    @property
    def hears_changes(self) -> bool:
        """Whether a list_changed of the server would reach the gateway now."""
        return True

    @abstractmethod
    async def open(self, *, skip_probe: bool = False) -> None:
        """Find out the era and shake hands. `skip_probe` goes straight to `initialize`, for servers that can't bear
        another first message. Raises: ConnectionEndedError, RpcError. Has no bound of its own: the caller has one."""

    @abstractmethod
    async def request(self, method: str, params: dict[str, Any], caller: Caller) -> Result:
        """Send one request and wait for its answer. What the server sends meanwhile reaches `caller`. Cancellation is
        passed on to the server. Raises: RpcError as the server answered it, ConnectionEndedError."""

    @abstractmethod
    async def notify(self, method: str, params: dict[str, Any], caller: Caller) -> None:
        """Send a notification, best effort."""

    @abstractmethod
    async def subscribe(self, uris: frozenset[str], timeout_s: float) -> dict[str, RpcError]:
        """Have updates of exactly these resources reported to the listener. Gives those that the server refuses, with
        its words, or does not answer for in time; not one of a connection that has ended."""

    @abstractmethod
    async def wait_ended(self) -> str:
        """Returns, in words, how the connection ended."""

    @abstractmethod
    async def close(self) -> None:
        """End the connection and what it started. Bounded; safe to repeat."""

    async def forget(self, key: object) -> None:
        """A client session is over: drop what was kept for it. Nothing, where all clients share one session."""
        return
