"""Requests to the control plane, which nothing in a pod can reach: it polls for them, and settles each.

A configuration may be set twice, so one that the control plane has taken and says nothing of any more is handed out
again. A run of a container may not; then nobody knows what became of it, and that is its answer.
"""

import asyncio
import itertools
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

SETTLE_TIMEOUT_S = 58.0
"""Of a configuration: the E2B SDK gives its command 60 s."""

TAKE_TIMEOUT_S = 15.0
"""Of a run: the control plane always has a poll open, but while it is started anew."""

RUN_TIMEOUT_S = 900.0
"""Of a run that was taken. The control plane has bounds of its own below this."""

MAX_WAITING = 16
"""Configurations."""
MAX_RUNS = 64

_SAYS_NOTHING = "the control plane does not answer"
_LOST = "the control plane was started anew meanwhile, so it is not known what became of this call"


class TooManyRequestsError(Exception):
    """As many wait already as may."""


class RefusedError(Exception):
    """What was asked for was not done, or not to its end; the message says why."""


@dataclass
class _Request:
    id: str
    kind: Literal["configuration", "run"]
    body: dict[str, Any] = field(repr=False)
    settled: "asyncio.Future[Any]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    taken: asyncio.Event = field(default_factory=asyncio.Event)


class ControlPlaneRequests:
    """Those that wait to be settled, oldest first."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Request] = {}
        self._ids = itertools.count(1)
        self._polls = 0
        self._change = asyncio.Event()
        """Set, and replaced, whenever there is something else to tell."""

    async def configure(self, body: dict[str, Any]) -> None:
        """Raises: RefusedError as the control plane settled it, TimeoutError if it did not, TooManyRequestsError."""
        request = self._add("configuration", body, MAX_WAITING)
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                await request.settled
        finally:
            self._remove(request)

    async def run(self, server: str, tool: str, arguments: Any) -> Any:
        """Have one container run for a call of a tool; gives the outcome. If cancelled the container is ended.

        Raises: RefusedError, TooManyRequestsError.
        """
        body = {"run": {"server": server, "tool": tool, "arguments": arguments}}
        request = self._add("run", body, MAX_RUNS)
        try:
            async with asyncio.timeout(TAKE_TIMEOUT_S):
                await request.taken.wait()
            async with asyncio.timeout(RUN_TIMEOUT_S):
                return await request.settled
        except TimeoutError:
            raise RefusedError(_SAYS_NOTHING) from None
        finally:
            self._remove(request)

    async def waiting(self, known: Collection[str], wait_s: float) -> list[dict[str, Any]]:
        """Every request not settled yet, those that are `known` by their id only; at once if others wait, or if one of
        them does not any more, else after the wait. A newer poll ends an older one, whose asker is gone."""
        self._polls += 1
        poll = self._polls
        self._tell()
        for request in list(self._waiting.values()):
            if request.kind == "run" and request.taken.is_set() and request.id not in known:
                _settle(request, RefusedError(_LOST))
        try:
            async with asyncio.timeout(wait_s):
                while poll == self._polls and self._unsettled().keys() == set(known):
                    await self._change.wait()
        except TimeoutError:
            pass
        if poll != self._polls:
            return []
        for request in self._unsettled().values():
            request.taken.set()
        return [
            {"id": request.id, **({} if request.id in known else request.body)}
            for request in self._unsettled().values()
        ]

    def settle(self, identifier: str, outcome: Any) -> bool:
        """With what came of it, or a RefusedError. False if nobody waits for it (any more)."""
        request = self._waiting.get(identifier)
        return request is not None and _settle(request, outcome)

    def _unsettled(self) -> dict[str, _Request]:
        return {request.id: request for request in self._waiting.values() if not request.settled.done()}

    def _add(self, kind: Literal["configuration", "run"], body: dict[str, Any], most: int) -> _Request:
        if sum(request.kind == kind for request in self._waiting.values()) >= most:
            raise TooManyRequestsError
        request = _Request(f"r{next(self._ids)}", kind, body)
        self._waiting[request.id] = request
        self._tell()
        return request

    def _remove(self, request: _Request) -> None:
        del self._waiting[request.id]
        if not request.settled.cancel() and not request.settled.cancelled():
            request.settled.exception()  # it was settled just as whoever waited for it went away
        self._tell()

    def _tell(self) -> None:
        self._change.set()
        self._change = asyncio.Event()


def _settle(request: _Request, outcome: Any) -> bool:
    if request.settled.done():
        return False
    if isinstance(outcome, Exception):
        request.settled.set_exception(outcome)
    else:
        request.settled.set_result(outcome)
    return True
