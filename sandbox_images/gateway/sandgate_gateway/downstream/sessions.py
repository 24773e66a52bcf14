"""Sessions of legacy clients: opened by `initialize`, ended by DELETE or idleness, forgotten by a restart."""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from sandgate_gateway import jsonrpc
from sandgate_gateway.callers import Caller, call_is_over
from sandgate_gateway.downstream.reply import EventStream, Reply
from sandgate_gateway.jsonrpc import RpcError
from sandgate_gateway.protocol import INTERNAL_ERROR, INVALID_REQUEST, log_rank

MAX_SESSIONS = 1000
"""Beyond it the session that was idle longest ends."""

IDLE_TIMEOUT_S = 24 * 3600.0
"""A session without a request or an open stream for so long ends at the next chance."""

ASK_TIMEOUT_S = 3600.0
"""A person may take a while to answer; nobody takes this long."""

MAX_FINISHED_STREAMS = 16
"""Streams of answered requests kept for clients whose connection broke."""

_EVENT_NUMBER = re.compile(r"[0-9]{1,18}")


class Session:
    """One client between `initialize` and the end."""

    def __init__(self, *, token: str, version: str, capabilities: dict[str, Any]) -> None:
        self.id = secrets.token_hex(16)
        self.token = token
        self.protocol_version = version
        self.capabilities = capabilities
        self.log_level: str | None = None
        self.subscriptions: set[str] = set()
        """Resource URIs as this client knows them."""
        self.background = EventStream("0", is_endless=True)
        """What belongs to no request; written to the GET stream."""
        self.last_used = time.monotonic()
        self._streams: dict[str, EventStream] = {"0": self.background}
        self._stream_count = 0
        self._calls: dict[object, asyncio.Task[None]] = {}
        self._asked: dict[str, tuple[Reply, asyncio.Future[Any]]] = {}
        """Questions the client has not answered, each with the reply it was sent on."""
        self._ask_count = 0
        self._url_elicitations: set[str] = set()

    # Requests of the client

    def new_stream(self) -> EventStream:
        self._stream_count += 1
        name = str(self._stream_count)
        while len(self._streams) > MAX_FINISHED_STREAMS:
            oldest = next((key for key, stream in self._streams.items() if stream.is_closed), None)
            if oldest is None:
                break
            del self._streams[oldest]
        stream = self._streams[name] = EventStream(name)
        return stream

    def stream_of(self, event_id: str) -> tuple[EventStream, int] | None:
        """The stream an event id belongs to, and the event's number; None if it is unknown or no longer kept."""
        name, _, number = event_id.rpartition("-")
        stream = self._streams.get(name)
        return (stream, int(number)) if stream is not None and _EVENT_NUMBER.fullmatch(number) else None

    def start(self, identifier: object, call: Coroutine[Any, Any, None]) -> None:
        """Run a call of the client in the background; it goes on if the client's connection breaks. Raises: RpcError
        for an id that is in use."""
        if identifier in self._calls:
            call.close()
            raise RpcError(INVALID_REQUEST, "a request with this id is in progress")
        task = self._calls[identifier] = asyncio.create_task(call, name=f"call {identifier!r}")
        task.add_done_callback(lambda _: self._calls.pop(identifier, None))

    def cancel(self, identifier: object) -> None:
        """notifications/cancelled; silent for a call that is over."""
        if isinstance(identifier, str | int) and (task := self._calls.get(identifier)) is not None:
            task.cancel()

    # Requests to the client

    async def ask(self, reply: Reply, method: str, params: Any) -> Any:
        """Send the client a request, on the reply of the call it belongs to, and wait for its answer. Raises:
        RpcError."""
        self._ask_count += 1
        identifier = f"sandgate-{self._ask_count}"
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[identifier] = reply, answer
        if isinstance(params, dict) and isinstance(elicitation := params.get("elicitationId"), str):
            self._url_elicitations.add(elicitation)
        reply.push(jsonrpc.request(identifier, method, params))
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                return await answer
        except TimeoutError:
            raise RpcError(INTERNAL_ERROR, f"the client did not answer {method} within {ASK_TIMEOUT_S:g} s") from None
        except asyncio.CancelledError:
            reply.push(jsonrpc.notification("notifications/cancelled", {"requestId": identifier}))
            raise
        finally:
            del self._asked[identifier]

    def answered(self, message: dict[str, Any]) -> None:
        """A response of the client; silent for one nobody waits for."""
        found = self._asked.get(message.get("id", ""))
        if found is None or found[1].done():
            return
        _, answer = found
        if "error" in message:
            answer.set_exception(jsonrpc.as_error(message["error"]))
        else:
            answer.set_result(message.get("result"))

    def take_back(self, reply: Reply | None = None) -> None:
        """Nobody is going to answer what was asked on this reply, or on any: the servers are told so."""
        for asked_on, answer in self._asked.values():
            if reply in (None, asked_on) and not answer.done():
                answer.set_exception(call_is_over())

    # What concerns no request

    def tell(self, method: str, params: dict[str, Any], message: bytes | None = None) -> None:
        """A notification on the GET stream, kept for a client that has none open. `message` is the same notification
        written already, for all sessions that are told."""
        if (
            method == "notifications/message"
            and self.log_level
            and log_rank(params.get("level")) < log_rank(self.log_level)
        ):
            return
        if method == "notifications/elicitation/complete" and params.get("elicitationId") not in self._url_elicitations:
            return
        self.background.push(jsonrpc.notification(method, params or None) if message is None else message)

    def close(self) -> None:
        for task in list(self._calls.values()):
            task.cancel()
        self.take_back()
        for stream in self._streams.values():
            stream.close()
            stream.take_over()

    @property
    def is_busy(self) -> bool:
        return bool(self._calls)


class SessionCaller(Caller):
    """One request of a legacy client."""

    era = "legacy"

    def __init__(self, session: Session, reply: Reply, progress_token: int | str | None) -> None:
        self.key = session.id
        self.capabilities = session.capabilities
        self.protocol_version = session.protocol_version
        self.log_level = session.log_level
        self.progress_token = progress_token
        self.tell = session.tell  # of the session, so that who keeps it does not keep this request
        self._session = session
        self._reply = reply

    def notify(self, method: str, params: dict[str, Any]) -> None:
        self._reply.push(jsonrpc.notification(method, params))

    async def ask(self, method: str, params: Any) -> Any:
        if not self.has_capability_for(method):
            self.lacked_capability = method
            raise RpcError(INVALID_REQUEST, f"the client cannot answer {method}: it did not declare the capability")
        if self._reply.is_finished:
            raise RpcError(INVALID_REQUEST, f"{method} came after the call it belongs to was answered")
        return await self._session.ask(self._reply, method, params)


Ended = Callable[[Session], Awaitable[None]]


class Sessions:
    """All sessions of this gateway, bounded in number and idle time."""

    def __init__(self, ended: Ended) -> None:
        self._sessions: dict[str, Session] = {}
        self._ended = ended
        self._endings: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Any:
        return iter(list(self._sessions.values()))

    def add(self, session: Session) -> None:
        self._make_room()
        self._sessions[session.id] = session

    def get(self, identifier: str, token: str) -> Session | None:
        """A session only answers to the token that opened it."""
        session = self._sessions.get(identifier)
        if session is None or session.token != token:
            return None
        session.last_used = time.monotonic()
        return session

    def end(self, session: Session) -> None:
        """Safe to repeat."""
        if self._sessions.pop(session.id, None) is not None:
            session.close()
            task = asyncio.ensure_future(self._ended(session))
            self._endings.add(task)
            task.add_done_callback(self._endings.discard)

    def keep_tokens(self, tokens: tuple[str, ...]) -> None:
        """End the sessions of tokens that are no longer accepted."""
        for session in self:
            if session.token not in tokens:
                self.end(session)

    def close(self) -> None:
        for session in self:
            self.end(session)

    def _make_room(self) -> None:
        now = time.monotonic()
        by_age = sorted((s for s in self if not s.is_busy), key=lambda session: session.last_used)
        too_many = len(self._sessions) - MAX_SESSIONS + 1
        for index, session in enumerate(by_age):
            if index < too_many or now - session.last_used > IDLE_TIMEOUT_S:
                self.end(session)
