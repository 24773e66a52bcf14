"""One session with a legacy server over streamable HTTP (2025-03-26 to 2025-11-25)."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sandgate_gateway import jsonrpc
from sandgate_gateway.callers import GATEWAY, Caller
from sandgate_gateway.eras.outgoing import initialize_params, outgoing_params
from sandgate_gateway.eras.probe import accepted_legacy_version
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.protocol import CLIENT_REQUESTS, LATEST_LEGACY_VERSION, METHOD_NOT_FOUND
from sandgate_gateway.upstreams.connection import ConnectionEndedError, Listener
from sandgate_gateway.upstreams.correlation import Correlation, more_talkative, wants_log, with_client_token
from sandgate_gateway.upstreams.http_exchange import HttpExchanges, HttpStatusError, StreamPosition, messages

logger = logging.getLogger(__name__)

MAX_RESUMES = 3
"""Of one call's stream, one after the other."""

DEFAULT_RETRY_S = 0.5
MAX_RETRY_S = 10.0
MAX_RECONNECTS = 5
CLOSE_TIMEOUT_S = 3.0


class HttpSession:
    """Opened for one client, or for the gateway itself, with that client's capabilities."""

    def __init__(
        self, name: str, exchanges: HttpExchanges, listener: Listener, owner: Caller, end: Callable[[str], None]
    ) -> None:
        """`end` is called when the server is not reachable any more."""
        self.protocol_version = LATEST_LEGACY_VERSION
        self.capabilities: dict[str, Any] = {}
        self.instructions = ""
        self._name = name
        self._exchanges = exchanges
        self._listener = listener
        self._owner = owner
        self._end = end
        self._id: str | None = None
        self._correlation = Correlation()
        self._tasks: set[asyncio.Task[None]] = set()
        self._relays: dict[int | str, asyncio.Task[None]] = {}
        self._log_level: str | None = None

    async def open(self) -> None:
        """Raises: RpcError, ConnectionEndedError, HttpStatusError."""
        body = jsonrpc.request(0, "initialize", initialize_params(self._owner.capabilities))
        async with self._exchanges.post(body, {}) as response:
            self._id = response.headers.get("Mcp-Session-Id")
            value = await self._first_answer(messages(response))
        self.protocol_version = accepted_legacy_version(value)
        self.capabilities = value.get("capabilities") or {}
        self.instructions = value.get("instructions") or ""
        await self.notify("notifications/initialized", {})
        if self._id is not None:
            self._spawn(self._keep_listening(), "listen")

    async def _first_answer(self, incoming: Any) -> Any:
        async for entry in incoming:
            if "method" not in entry.message:
                if "error" in entry.message:
                    raise jsonrpc.as_error(entry.message["error"])
                return entry.message.get("result")
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
        body = jsonrpc.request(entry.identifier, method, outgoing)
        try:
            return await self._exchange(body, entry.identifier, caller)
        except asyncio.CancelledError:
            self._spawn(self.notify("notifications/cancelled", {"requestId": entry.identifier}), "cancel")
            raise
        finally:
            self._correlation.take(entry.identifier)

    async def _exchange(self, body: bytes, identifier: int, caller: Caller) -> Result:
        position = StreamPosition()
        async with self._exchanges.post(body, self._headers()) as response:
            with suppress(ConnectionEndedError):
                if (result := await self._read(messages(response, position), identifier, caller)) is not None:
                    return result
        # The stream broke; the call goes on at the server, and its answer can be fetched (SEP-1699).
        for _ in range(MAX_RESUMES):
            if position.last_event_id is None:
                break
            await asyncio.sleep(min((position.retry_ms or DEFAULT_RETRY_S * 1000) / 1000, MAX_RETRY_S))
            headers = {**self._headers(), "Last-Event-ID": position.last_event_id}
            with suppress(ConnectionEndedError, HttpStatusError):
                async with self._exchanges.get(headers) as response:
                    if (result := await self._read(messages(response, position), identifier, caller)) is not None:
                        return result
        raise ConnectionEndedError("closed the stream before it answered")

    async def _read(self, incoming: Any, identifier: int, caller: Caller) -> Result | None:
        """The answer to one request; None if the stream ends without it. What else comes belongs to `caller`."""
        async for entry in incoming:
            message = entry.message
            if "method" in message:
                self._from_server(message, caller)
            elif message.get("id") == identifier:
                if "error" in message:
                    raise jsonrpc.as_error(message["error"])
                return Result(message.get("result"), entry.raw)
        return None

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        """Best effort."""
        await self._send(jsonrpc.notification(method, params or None))

    async def close(self, *, tell_server: bool) -> None:
        """Bounded; safe to repeat."""
        tasks = {*self._tasks, *self._relays.values()} - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        identifier, self._id = self._id, None
        if tell_server and identifier is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._exchanges.delete({**self._headers(), "Mcp-Session-Id": identifier})

    # What the server sends

    def _from_server(self, message: dict[str, Any], caller: Caller | None) -> None:
        """A notification or request, on the stream of a call of `caller` or, with None, on the session's own stream."""
        method, params = str(message["method"]), message.get("params")
        if "id" in message:
            self._relays[message["id"]] = asyncio.create_task(self._relay(message["id"], method, params, caller))
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
                if (relay := self._relays.get(params.get("requestId", ""))) is not None:
                    relay.cancel()
            case "notifications/elicitation/complete":
                self._background(method, params)
            case _ if self._owner is GATEWAY or caller is not None:
                self._listener(method, params)  # the gateway's own session hears of every change already

    def _background(self, method: str, params: dict[str, Any]) -> None:
        if self._owner is GATEWAY:
            self._listener(method, params)
        else:
            self._owner.tell(method, params)

    async def _relay(self, identifier: int | str, method: str, params: Any, caller: Caller | None) -> None:
        try:
            if method == "ping":
                answer = jsonrpc.response(identifier, Result({}))
            elif method not in CLIENT_REQUESTS:
                raise RpcError(METHOD_NOT_FOUND, f"the gateway knows no client that answers {method}")
            else:
                caller = caller or self._correlation.caller_for_request(method)
                answer = jsonrpc.response(identifier, Result(await caller.ask(method, params)))
        except RpcError as error:
            answer = jsonrpc.error_response(identifier, error)
        finally:
            self._relays.pop(identifier, None)
        await self._send(answer)

    async def _keep_listening(self) -> None:
        """The session's GET stream, opened again when it ends; a server need not offer one."""
        position = StreamPosition()
        failures = 0
        while failures < MAX_RECONNECTS:
            resume = {} if position.last_event_id is None else {"Last-Event-ID": position.last_event_id}
            try:
                async with self._exchanges.get({**self._headers(), **resume}) as response:
                    failures = 0
                    async for entry in messages(response, position):
                        if "method" in entry.message:
                            self._from_server(entry.message, None)
            except HttpStatusError:
                return  # 405: it has none; 404: the session is gone, which the next request finds out
            except RpcError:
                failures += 1
            except ConnectionEndedError:
                failures += 1
            await asyncio.sleep(min((position.retry_ms or DEFAULT_RETRY_S * 1000) / 1000 * (failures + 1), MAX_RETRY_S))
        if self._owner is GATEWAY:
            self._end("is not reachable any more")

    async def _send(self, body: bytes) -> None:
        try:
            async with self._exchanges.post(body, self._headers()):
                return
        except (RpcError, HttpStatusError, ConnectionEndedError) as error:
            logger.info("a message to server %s was lost: %s", self._name, error)

    def _headers(self) -> dict[str, str]:
        headers = {"MCP-Protocol-Version": self.protocol_version}
        if self._id is not None:
            headers["Mcp-Session-Id"] = self._id
        return headers

    def _spawn(self, work: Any, what: str) -> None:
        task = asyncio.create_task(work, name=f"{what} {self._name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
