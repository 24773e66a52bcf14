"""Whom a message of a shared server belongs to. Pure bookkeeping, without I/O.

On stdio nothing but a request id or a progress token says which call a message is about. A request of the server, or a
log message, belongs to the one client that has requests in flight there; where that is not unique nobody gets it,
because a wrong guess would show one client's question or data to another. So a client that could not answer counts,
and so does one that has cancelled a call which the server may not have given up yet. A call that is waiting for the
answer to a question is not expected to ask another: it counts only if no other call is in flight.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from sandgate_gateway.callers import GATEWAY, Caller
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.protocol import INVALID_REQUEST, LOG_LEVELS, log_rank

CANCELLED_COUNTS_S = 60.0
"""How long a cancelled request that is not answered counts as one the server still works at."""

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

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._in_flight: dict[int, InFlight] = {}
        self._cancelled: dict[int, tuple[Hashable, float]] = {}
        """Request -> key of its caller, until when it counts; the oldest first."""
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
        entry = self._in_flight.pop(identifier, None)
        if entry is None:
            self._cancelled.pop(identifier, None)
        return entry

    def cancel(self, identifier: int) -> None:
        """Nobody waits for this request any more, but the server may go on with it."""
        entry = self._in_flight.pop(identifier, None)
        if entry is not None and entry.caller.key != GATEWAY.key:
            self._forget_old()
            self._cancelled[identifier] = (entry.caller.key, self._now() + CANCELLED_COUNTS_S)

    def take_all(self) -> list[InFlight]:
        entries, self._in_flight = list(self._in_flight.values()), {}
        return entries

    def by_token(self, token: object) -> Caller | None:
        """The progress token of a request is its id."""
        entry = self._in_flight.get(token) if isinstance(token, int) else None
        return entry.caller if entry else None

    def caller_for_request(self, method: str) -> Caller:
        """Who is to answer a request of the server. Raises: RpcError for the server if that is not clear."""
        clients = self._clients()
        callers = [caller for caller in clients.values() if caller is not None]
        able = [caller for caller in callers if caller.has_capability_for(method)]
        if able and len(clients) == 1:
            return able[0]
        if able:
            raise RpcError(
                INVALID_REQUEST,
                f"{method} cannot be answered: {len(clients)} clients have calls in progress on this server, or have "
                "just cancelled one, and nothing in the request says which one it is for",
            )
        for caller in callers:
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
        return caller if caller is not None and wants_log(caller, level) else None

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

    def _clients(self) -> dict[Hashable, Caller | None]:
        """The latest request in flight of each client, None for one that has cancelled all it had; the gateway's own
        requests do not count."""
        self._forget_old()
        callers = [entry.caller for entry in self._in_flight.values() if entry.caller.key != GATEWAY.key]
        in_flight = {caller.key: caller for caller in callers if caller not in self._asking} or {
            caller.key: caller for caller in callers
        }
        return {**dict.fromkeys(key for key, _ in self._cancelled.values()), **in_flight}

    def _forget_old(self) -> None:
        now = self._now()
        while self._cancelled:
            oldest = next(iter(self._cancelled))
            if self._cancelled[oldest][1] > now:
                break
            del self._cancelled[oldest]


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
