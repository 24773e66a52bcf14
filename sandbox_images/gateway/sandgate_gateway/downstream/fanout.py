"""What servers say to nobody in particular, on its way to every client that wants to hear it."""

import asyncio
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Protocol

import orjson

from sandgate_gateway import jsonrpc
from sandgate_gateway.aggregate import Aggregate
from sandgate_gateway.downstream.sessions import Session, Sessions
from sandgate_gateway.lists import CAPABILITY, KINDS
from sandgate_gateway.protocol import LIST_CHANGED
from sandgate_gateway.servers.server import Server

SETTLE_S = 0.05
"""Changes that come together, as when servers start, are announced together."""


class Listener(Protocol):
    """A modern client's `subscriptions/listen`."""

    def tell(self, method: str, params: dict[str, Any]) -> None: ...


class Fanout:
    """Announces changes of the merged lists, and passes on updates of resources and background log messages."""

    def __init__(self, aggregate: Aggregate, sessions: Sessions) -> None:
        self._aggregate = aggregate
        self._sessions = sessions
        self._listeners: set[Listener] = set()
        self._announced: dict[str, bytes] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, listener: Listener) -> Callable[[], None]:
        """Returns what removes it again."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def lists_may_have_changed(self) -> None:
        """Compare soon what clients would get with what they got last."""
        if not self._announced:
            self._announce()  # what there is before the first change is what changes are told by
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SETTLE_S, self._announce)

    def heard(self, server: Server, method: str, params: dict[str, Any]) -> None:
        """A notification of a server that belongs to no call."""
        match method:
            case "notifications/resources/updated":
                uri = params.get("uri")
                if isinstance(uri, str):
                    exposed = self._aggregate.routes.uris.expose(server.name, uri)
                    self._updated(exposed, {**params, "uri": exposed})
            case "notifications/message" | "notifications/elicitation/complete":
                self._tell_sessions(method, params)
            case _ if method in LIST_CHANGED:
                self.lists_may_have_changed()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _updated(self, uri: str, params: dict[str, Any]) -> None:
        method = "notifications/resources/updated"
        self._tell_sessions(method, params, lambda session: uri in session.subscriptions)
        for listener in list(self._listeners):
            listener.tell(method, params)

    def _tell_sessions(
        self, method: str, params: dict[str, Any], concerns: Callable[[Session], bool] = lambda session: True
    ) -> None:
        """The message is written once, and kept once for all of them."""
        message = jsonrpc.notification(method, params or None)
        for session in self._sessions:
            if concerns(session):
                session.tell(method, params, message)

    def _announce(self) -> None:
        self._timer = None
        for method, capability in LIST_CHANGED.items():
            digest = self._digest(capability)
            before = self._announced.get(capability)
            self._announced[capability] = digest
            if before is not None and before != digest:
                self._tell_sessions(method, {})
                for listener in list(self._listeners):
                    listener.tell(method, {})

    def _digest(self, capability: str) -> bytes:
        merged = [self._aggregate.visible(kind) for kind in KINDS if CAPABILITY[kind] == capability]
        return sha256(orjson.dumps(merged)).digest()
