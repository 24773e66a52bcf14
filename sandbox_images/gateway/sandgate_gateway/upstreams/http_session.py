"""One session with a legacy server over streamable HTTP (2025-03-26 to 2025-11-25)."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any

import aiohttp

from sandgate_gateway import jsonrpc
from sandgate_gateway.callers import GATEWAY, Caller
from sandgate_gateway.cancelling import cancel_all
from sandgate_gateway.eras.outgoing import initialize_params, outgoing_params
from sandgate_gateway.eras.probe import accepted_legacy_version, declared
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.protocol import (
    CLIENT_REQUESTS,
    INVALID_REQUEST,
    LATEST_LEGACY_VERSION,
    LIST_CHANGED,
    METHOD_NOT_FOUND,
)
from sandgate_gateway.upstreams.connection import ConnectionEndedError, Listener
from sandgate_gateway.upstreams.correlation import Correlation, InFlight, more_talkative, wants_log, with_client_token
from sandgate_gateway.upstreams.http_exchange import (
    HttpExchanges,
    HttpStatusError,
    Incoming,
    StreamPosition,
    messages,
    pause_after,
)
from sandgate_gateway.upstreams.stream import MAX_RELAYS

logger = logging.getLogger(__name__)

MAX_RESUMES = 3
"""Of one call's stream, one after the other."""

DEFAULT_RETRY_S = 0.5
MIN_RETRY_S = 0.1
"""For a server that wants to be asked again at once, and ends each stream at once."""
MAX_RETRY_S = 10.0
MAX_RECONNECTS = 5
"""Of the session's own stream, one after the other in vain; then the server counts as gone."""

CLOSE_TIMEOUT_S = 3.0
LISTEN_WAIT_S = 2.0


class HttpSession:
    """Opened for one client, or for the gateway itself, with that client's capabilities."""

    def __init__(
        self, name: str, exchanges: HttpExchanges, listener: Listener, owner: Caller, end: Callable[[str], None]
    ) -> None:
        """`owner` is who it is opened for, GATEWAY for housekeeping; `end` is called when the server is lost for good.

        Keeps of the owner what outlives its first request only.
        """
        self.protocol_version = LATEST_LEGACY_VERSION
        self.capabilities: dict[str, Any] = {}
        self.instructions = ""
        self._name = name
        self._exchanges = exchanges
        self._listener = listener
        self._owner_is_gateway = owner is GATEWAY
        self._owner_capabilities = owner.capabilities
        self._tell_owner = owner.tell
        self._end = end
        self._id: str | None = None
        self._correlation = Correlation()
        self._tasks: set[asyncio.Task[None]] = set()
        self._relays: dict[int | str, asyncio.Task[None]] = {}
        self._log_level: str | None = None
        self._listening = asyncio.Event()
        self._was_interrupted = False
        self.is_listening = False
        """Whether the session's own stream is open."""

    async def open(self) -> None:
        """Raises: RpcError, ConnectionEndedError, HttpStatusError."""
        body = jsonrpc.request(0, "initialize", initialize_params(self._owner_capabilities))
        async with self._exchanges.post(body, {}) as response:
            self._id = response.headers.get("Mcp-Session-Id")
            value = await self._first_answer(messages(response))
        self.protocol_version = accepted_legacy_version(value)
        self.capabilities, self.instructions = declared(value)
        await self.notify("notifications/initialized", {})
        if self._id is not None:
            listen = self._spawn(self._keep_listening(), "listen")
            listen.add_done_callback(lambda _: self._listening.set())
            # What a server asks on this stream is lost if it asks before the stream is there.
            with suppress(TimeoutError):
                async with asyncio.timeout(LISTEN_WAIT_S):
                    await self._listening.wait()

    async def _first_answer(self, incoming: AsyncIterator[Incoming]) -> Any:
        async for each in incoming:
            if "method" not in each.message:
                if "error" in each.message:
                    raise jsonrpc.as_error(each.message["error"])
                return each.message.get("result")
        raise ConnectionEndedError("closed the stream before it answered initialize")

    async def request(self, method: str, params: dict[str, Any], caller: Caller) -> Result:
        """Raises: RpcError, ConnectionEndedError, HttpStatusError."""
        if "logging" in self.capabilities and more_talkative(caller.log_level, self._log_level):
            self._log_level = caller.log_level
            with suppress(RpcError):
                await self.request("logging/setLevel", {"level": caller.log_level}, GATEWAY)
        entry = self._correlation.add(caller, asyncio.get_running_loop().create_future())
        token = entry.identifier if caller.progress_token is not None else None
        outgoing = outgoing_params("legacy", self.protocol_version, params, caller, token)
        try:
            return await self._exchange(jsonrpc.request(entry.identifier, method, outgoing), entry)
        except asyncio.CancelledError:
            self._spawn(self.notify("notifications/cancelled", {"requestId": entry.identifier}), "cancel")
            raise
        finally:
            self._correlation.take(entry.identifier)

    async def _exchange(self, body: bytes, entry: InFlight) -> Result:
        position = StreamPosition()
        async with self._exchanges.post(body, self._headers()) as response:
            with suppress(ConnectionEndedError):
                if (result := await self._read(messages(response, position), entry)) is not None:
                    return result
        if position.last_event_id is None:
            raise ConnectionEndedError("closed the stream before it answered")
        # The call goes on at the server. Its answer can be fetched, or comes on the session's own stream (SEP-1699).
        resume = asyncio.create_task(self._resume(position, entry), name=f"resume {self._name}")
        either: set[asyncio.Future[Any]] = {resume, entry.answer}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return entry.answer.result() if entry.answer.done() else resume.result()
        finally:
            resume.cancel()
            await asyncio.wait((resume,))

    async def _resume(self, position: StreamPosition, entry: InFlight) -> Result:
        for _ in range(MAX_RESUMES):
            await asyncio.sleep(_pause(position, 0))
            headers = {**self._headers(), "Last-Event-ID": str(position.last_event_id)}
            with suppress(ConnectionEndedError, HttpStatusError):
                async with self._exchanges.get(headers) as response:
                    if (result := await self._read(messages(response, position), entry)) is not None:
                        return result
        raise ConnectionEndedError("closed the stream before it answered")

    async def _read(self, incoming: AsyncIterator[Incoming], entry: InFlight) -> Result | None:
        """The answer to one request; None if the stream ends without it. What else comes belongs to its caller."""
        async for each in incoming:
            message = each.message
            if "method" in message:
                self._from_server(message, entry.caller)
            elif message.get("id") == entry.identifier:
                if "error" in message:
                    raise jsonrpc.as_error(message["error"])
                return Result(message.get("result"), each.raw)
        return None

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        """Best effort."""
        await self._send(jsonrpc.notification(method, params or None))

    async def close(self, *, tell_server: bool) -> None:
        """Bounded; safe to repeat."""
        await cancel_all(
            [task for task in (*self._tasks, *self._relays.values()) if task is not asyncio.current_task()]
        )
        identifier, self._id = self._id, None
        if tell_server and identifier is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._exchanges.delete({**self._headers(), "Mcp-Session-Id": identifier})

    # What the server sends

    def _from_server(self, message: dict[str, Any], caller: Caller | None) -> None:
        """A notification or request, on the stream of a call of `caller` or, with None, on the session's own stream."""
        method, identifier, params = str(message["method"]), message.get("id"), message.get("params")
        if identifier is not None:
            if isinstance(identifier, str | int):
                self._request(identifier, method, params, caller)
            return
        params = params if isinstance(params, dict) else {}
        match method:
            case "notifications/progress":
                owner = self._correlation.by_token(params.get("progressToken")) or caller
                if owner is not None and (translated := with_client_token(params, owner)) is not None:
                    owner.notify(method, translated)
            case "notifications/message":
                if caller is not None and wants_log(caller, params.get("level")):
                    caller.notify(method, params)
                elif caller is None:
                    self._background(method, params)
            case "notifications/cancelled":
                identifier = params.get("requestId")
                if isinstance(identifier, str | int) and (relay := self._relays.get(identifier)) is not None:
                    relay.cancel()
            case "notifications/elicitation/complete":
                self._background(method, params)
            case _:
                self._listener(method, params)  # some servers tell a change only to the session that caused it

    def _background(self, method: str, params: dict[str, Any]) -> None:
        if self._owner_is_gateway:
            self._listener(method, params)
        else:
            self._tell_owner(method, params)

    def _request(self, identifier: int | str, method: str, params: Any, caller: Caller | None) -> None:
        if identifier in self._relays:
            return  # sent again, as a stream that is resumed may do
        if len(self._relays) >= MAX_RELAYS:
            # A server that leaves the answers untaken does not get this one either.
            if len(self._tasks) < MAX_RELAYS:
                error = RpcError(INVALID_REQUEST, f"more than {MAX_RELAYS} requests are waiting")
                self._spawn(self._send(jsonrpc.error_response(identifier, error)), "refuse")
            return
        relay = asyncio.create_task(self._relay(identifier, method, params, caller), name=f"{method} of {self._name}")
        self._relays[identifier] = relay
        relay.add_done_callback(lambda _: self._relays.pop(identifier, None))

    async def _relay(self, identifier: int | str, method: str, params: Any, caller: Caller | None) -> None:
        """The request counts as waiting until the server has taken the answer."""
        try:
            if method == "ping":
                answer = jsonrpc.response(identifier, Result({}))
            elif method not in CLIENT_REQUESTS:
                raise RpcError(METHOD_NOT_FOUND, f"the gateway knows no client that answers {method}")
            else:
                caller = caller or self._correlation.caller_for_request(method)
                with self._correlation.asking(caller):
                    answer = jsonrpc.response(identifier, Result(await caller.ask(method, params)))
        except RpcError as error:
            answer = jsonrpc.error_response(identifier, error)
        await self._send(answer)

    async def _keep_listening(self) -> None:
        """The session's GET stream, opened again when it ends; a server need not offer one. While one that did so
        refuses it, its lists are good for as long as those of any that says nothing of changes."""
        position = StreamPosition()
        failures = refusals = 0
        while failures < MAX_RECONNECTS:
            resume = {} if position.last_event_id is None else {"Last-Event-ID": position.last_event_id}
            try:
                async with self._exchanges.get({**self._headers(), **resume}) as response:
                    failures = refusals = 0
                    await self._listen(response, position)
            except HttpStatusError as error:
                if error.status == 404 and self._owner_is_gateway:
                    self._end("has forgotten the gateway's session")
                    return
                had_stream = self._listening.is_set()
                if had_stream and not refusals:
                    self._have_lists_read()
                if not (had_stream and error.may_pass):
                    return  # 405: it has none; 404: a client's session is opened again by its next request
                failures = 0  # something is there that answers
                refusals += 1
            except (RpcError, ConnectionEndedError):
                failures += 1
            await asyncio.sleep(_pause(position, failures, refusals))
        if self._owner_is_gateway:
            self._end("is not reachable any more")

    def _have_lists_read(self) -> None:
        """What changed lately may have been said to nobody."""
        if self._owner_is_gateway:
            for method in LIST_CHANGED:
                self._listener(method, {})

    async def _listen(self, response: aiohttp.ClientResponse, position: StreamPosition) -> None:
        """Read the session's own stream to its end."""
        self._listening.set()
        self.is_listening = True
        if self._was_interrupted:
            self._have_lists_read()
        try:
            async for each in messages(response, position):
                if "method" in each.message:
                    self._from_server(each.message, None)
                else:
                    self._late_answer(each)
        finally:
            self.is_listening = False
            self._was_interrupted = position.last_event_id is None

    def _late_answer(self, incoming: Incoming) -> None:
        """A response on the session's own stream: the stream of its request was closed before."""
        entry = self._correlation.take(incoming.message.get("id"))
        if entry is None or entry.answer.done():
            return
        if "error" in incoming.message:
            entry.answer.set_exception(jsonrpc.as_error(incoming.message["error"]))
        else:
            entry.answer.set_result(Result(incoming.message.get("result"), incoming.raw))

    async def _send(self, body: bytes) -> None:
        try:
            await self._exchanges.deliver(body, self._headers())
        except (RpcError, HttpStatusError, ConnectionEndedError) as error:
            logger.info("a message to server %s was lost: %s", self._name, error)

    def _headers(self) -> dict[str, str]:
        headers = {"MCP-Protocol-Version": self.protocol_version}
        if self._id is not None:
            headers["Mcp-Session-Id"] = self._id
        return headers

    def _spawn(self, work: Coroutine[Any, Any, None], what: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(work, name=f"{what} {self._name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _pause(position: StreamPosition, failures: int, refusals: int = 0) -> float:
    """Seconds before a stream is opened again: what the server asked for, longer after failures, much longer after
    refusals."""
    retry_s = DEFAULT_RETRY_S if position.retry_ms is None else max(position.retry_ms / 1000, MIN_RETRY_S)
    return pause_after(refusals, retry_s) if refusals else min(retry_s * (failures + 1), MAX_RETRY_S)
