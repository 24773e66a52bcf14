"""Whom a message of a shared server belongs to. Pure bookkeeping, without I/O.

On stdio nothing but a request id or a progress token says which call a message is about. A request of the server, or a
log message, belongs to the one client that has requests in flight there; where that is not unique nobody gets it,
because a wrong guess would show one client's question or data to another. A call that is waiting for the answer to a
question is not expected to ask another: it counts only if no other call is in flight.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sandgate_gateway.callers import Caller
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.protocol import INVALID_REQUEST, LOG_LEVELS, log_rank

_MAX_DIGITS = 18


class InFlight:
    """A request the server has not answered yet."""

    __slots__ = ("answer", "caller", "identifier")

    def __init__(self, identifier: int, caller: Caller, answer: "asyncio.Future[Result]") -> None:
        self.identifier = identifier
        self.caller = caller
        self.answer = answer


class Correlation:
    """The requests in flight on one connection, by id."""

    def __init__(self) -> None:
        self._in_flight: dict[int, InFlight] = {}
        self._asking: list[Caller] = []
        self._last_id = 0

    def add(self, caller: Caller, answer: "asyncio.Future[Result]") -> InFlight:
        self._last_id += 1
        entry = self._in_flight[self._last_id] = InFlight(self._last_id, caller, answer)
        return entry

    def take(self, identifier: object) -> InFlight | None:
        """Remove and return the request with this id; None for an answer nobody waits for. Some servers make a string
        of the number."""
        if isinstance(identifier, str) and identifier.isdecimal() and len(identifier) < _MAX_DIGITS:
            identifier = int(identifier)
        if isinstance(identifier, bool) or not isinstance(identifier, int):
            return None
        return self._in_flight.pop(identifier, None)

    def take_all(self) -> list[InFlight]:
        entries, self._in_flight = list(self._in_flight.values()), {}
        return entries

    def by_token(self, token: object) -> Caller | None:
        """The progress token of a request is its id."""
        entry = self._in_flight.get(token) if isinstance(token, int) else None
        return entry.caller if entry else None

    def caller_for_request(self, method: str) -> Caller:
        """Who is to answer a request of the server. Raises: RpcError for the server if that is not clear."""
        candidates = self._clients()
        able = {key: caller for key, caller in candidates.items() if caller.has_capability_for(method)}
        if len(able) == 1:
            return next(iter(able.values()))
        if able:
            raise RpcError(
                INVALID_REQUEST,
                f"{method} cannot be answered: {len(able)} clients have calls in progress on this server "
                "and nothing in the request says which one it is for",
            )
        for caller in candidates.values():
            caller.lacked_capability = method
        raise RpcError(
            INVALID_REQUEST,
            f"{method} cannot be answered: no client with a call in progress on this server supports it",
        )

    def caller_for_log(self, level: object) -> Caller | None:
        """Whose call a log message belongs to; None if there is not exactly one client with calls in progress."""
        clients = self._clients()
        if len(clients) != 1:
            return None
        caller = next(iter(clients.values()))
        return caller if wants_log(caller, level) else None

    @contextmanager
    def asking(self, caller: Caller) -> Iterator[None]:
        """While a question to this caller is open."""
        self._asking.append(caller)
        try:
            yield
        finally:
            self._asking.remove(caller)

    @property
    def has_clients(self) -> bool:
        return bool(self._clients())

    def _clients(self) -> dict[object, Caller]:
        """The latest request in flight of each client; the gateway's own requests do not count."""
        callers = [entry.caller for entry in self._in_flight.values() if entry.caller.key != "gateway"]
        return {caller.key: caller for caller in callers if caller not in self._asking} or {
            caller.key: caller for caller in callers
        }


def wants_log(caller: Caller, level: object) -> bool:
    """A legacy client that set no level gets what the server sends; a modern one that asked for none gets nothing."""
    if caller.log_level is None:
        return caller.era == "legacy"
    return log_rank(level) >= log_rank(caller.log_level)


def with_client_token(params: dict[str, Any], caller: Caller) -> dict[str, Any] | None:
    """Params of a progress notification as the client must see them; None if it asked for no progress."""
    if caller.progress_token is None:
        return None
    return {**params, "progressToken": caller.progress_token}


def more_talkative(level: str | None, than: str | None) -> bool:
    """Whether a server set to `than` would hold back messages that `level` asks for."""
    return level in LOG_LEVELS and (than is None or log_rank(level) < log_rank(than))
