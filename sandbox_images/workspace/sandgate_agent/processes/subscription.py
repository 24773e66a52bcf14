"""What one listener of a process still has to be told."""

import asyncio
from collections import deque
from typing import Any, Self

from sandgate_agent.errors import AgentError

Event = dict[str, Any]
"""A ProcessEvent of the envd contract, in its JSON form."""

_CAPACITY = 16
"""Events kept per listener. Each holds at most one chunk, so this also bounds the memory of a slow listener."""


class Subscription:
    """A bounded queue from a process to one listener, an asynchronous iterator of events.

    While it is full the process's output waits: nothing is lost and nothing piles up. A listener that is gone must
    close it, and from then on no longer holds anything up.
    """

    def __init__(self, first_event: Event) -> None:
        self._events: deque[Event] = deque([first_event])
        self._is_ended = False
        self._error: AgentError | None = None
        self._is_closed = False
        self._has_news = asyncio.Event()
        self._has_room = asyncio.Event()

    async def put(self, event: Event) -> None:
        while len(self._events) >= _CAPACITY and not self._is_closed:
            self._has_room.clear()
            await self._has_room.wait()
        if not self._is_closed:
            self._events.append(event)
            self._has_news.set()

    def end(self, last_event: Event | AgentError) -> None:
        """Nothing more will come; an error is raised to the listener. Never waits."""
        if isinstance(last_event, AgentError):
            self._error = last_event
        else:
            self._events.append(last_event)
        self._is_ended = True
        self._has_news.set()

    def close(self) -> None:
        self._is_closed = True
        self._events.clear()
        self._has_room.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._is_ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._has_news.clear()
            await self._has_news.wait()
        self._has_room.set()
        return self._events.popleft()
