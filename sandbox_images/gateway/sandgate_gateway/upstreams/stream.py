"""JSON-RPC with one server over a pair of byte streams, one JSON object a line: what stdio, door and socket share.

All clients share the connection; correlation.py says whose message is whose.
"""

import asyncio
import logging
from abc import abstractmethod
from contextlib import suppress
from typing import Any

from sandgate_gateway import jsonrpc
from sandgate_gateway.callers import GATEWAY, Caller
from sandgate_gateway.eras.outgoing import SHARED_CAPABILITIES, initialize_params, outgoing_params
from sandgate_gateway.eras.probe import accepted_legacy_version, is_modern_refusal, modern_version
from sandgate_gateway.framing import LineReader, MessageTooLongError
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.protocol import CLIENT_REQUESTS, INTERNAL_ERROR, METHOD_NOT_FOUND, MODERN_VERSION
from sandgate_gateway.upstreams.connection import Connection, ConnectionEndedError, Listener
from sandgate_gateway.upstreams.correlation import Correlation, more_talkative, with_client_token

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 5.0
"""A server that is still silent then is sent `initialize` as well; whichever it answers first tells its era."""

WRITE_TIMEOUT_S = 30.0
"""How long a server may leave its stdin unread before a request to it fails."""


class StreamConnection(Connection):
    """Subclasses move bytes: they implement `start`, `write` and `close`, and call `received` and `ended`."""

    def __init__(self, name: str, listener: Listener) -> None:
        self.capabilities = {}
        self._name = name
        self._listener = listener
        self._lines = LineReader()
        self._correlation = Correlation()
        self._relays: dict[int | str, asyncio.Task[None]] = {}
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._writable = asyncio.Event()
        self._writable.set()
        self._log_level: str | None = None
        self._subscriptions: frozenset[str] = frozenset()
        self._listen: asyncio.Task[None] | None = None

    # What subclasses do

    @abstractmethod
    async def start(self) -> None:
        """Connect or start the program. Raises: ConnectionEndedError."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Hand bytes to the server's stdin; silent once it is closed."""

    def received(self, data: bytes) -> None:
        """Bytes from the server's stdout."""
        try:
            lines = self._lines.feed(data)
        except MessageTooLongError as error:
            self.ended(f"sent {error}")
            return
        for line in lines:
            self._message(line)

    def ended(self, how: str) -> None:
        """The connection is over: everything in flight fails. Safe to repeat; the first call's words count."""
        if self._ended.done():
            return
        self._ended.set_result(how)
        for entry in self._correlation.take_all():
            if not entry.answer.done():
                entry.answer.set_exception(ConnectionEndedError(how))
        for task in list(self._relays.values()):
            task.cancel()
        if self._listen is not None:
            self._listen.cancel()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # Connection

    async def open(self, *, skip_probe: bool = False) -> None:
        await self.start()
        if skip_probe:
            await self._initialize()
            return
        self.era = "modern"  # the probe itself is a modern request
        self.protocol_version = MODERN_VERSION
        probe = asyncio.ensure_future(self.request("server/discover", {}, GATEWAY))
        try:
            done, _ = await asyncio.wait({probe}, timeout=PROBE_TIMEOUT_S)
            if done:
                await self._settle_probe(probe)
            else:
                await self._race_initialize(probe)
        finally:
            probe.cancel()
            probe.add_done_callback(_retrieved)

    async def _settle_probe(self, probe: "asyncio.Future[Result]") -> None:
        try:
            self._discovered(probe.result().value)
        except RpcError as error:
            if is_modern_refusal(error):
                raise
            await self._initialize()

    async def _race_initialize(self, probe: "asyncio.Future[Result]") -> None:
        """A slow starter has both first messages before it: modern, it refuses `initialize`; legacy, the probe."""
        initialize = asyncio.ensure_future(self._initialize())
        try:
            first: set[asyncio.Future[Any]] = {probe, initialize}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not probe.done():
                with suppress(RpcError):  # refused: the answer to the probe is still to come
                    return await initialize
            try:
                self._discovered((await probe).value)
            except RpcError:
                await initialize
        finally:
            initialize.cancel()
            initialize.add_done_callback(_retrieved)

    def _discovered(self, value: Any) -> None:
        version = modern_version(Result(value))
        if version is None:
            raise RpcError(INTERNAL_ERROR, "answered server/discover without a version this gateway speaks")
        self.era, self.protocol_version = "modern", version
        self.capabilities = value.get("capabilities") or {}
        self.instructions = value.get("instructions") or ""
        self._restart_listen()

    async def _initialize(self) -> None:
        self.era = "legacy"
        result = await self.request("initialize", initialize_params(SHARED_CAPABILITIES), GATEWAY)
        self.protocol_version = accepted_legacy_version(result.value)
        self.era = "legacy"
        self.capabilities = result.value.get("capabilities") or {}
        self.instructions = result.value.get("instructions") or ""
        self.write(jsonrpc.notification("notifications/initialized") + b"\n")

    async def request(self, method: str, params: dict[str, Any], caller: Caller) -> Result:
        if self._ended.done():
            raise ConnectionEndedError(self._ended.result())
        if self.era == "legacy" and more_talkative(caller.log_level, self._log_level):
            await self._set_log_level(caller.log_level)
        if not self._writable.is_set():
            await self._wait_writable()
        entry = self._correlation.add(caller, asyncio.get_running_loop().create_future())
        token = entry.identifier if caller.progress_token is not None else None
        outgoing = outgoing_params(self.era, self.protocol_version, params, caller, token)
        self.write(jsonrpc.request(entry.identifier, method, outgoing) + b"\n")
        try:
            return await entry.answer
        except asyncio.CancelledError:
            self._correlation.take(entry.identifier)
            if method not in ("initialize", "server/discover"):  # these must not be cancelled (both revisions)
                self.write(_cancelled(entry.identifier))
            raise

    async def notify(self, method: str, params: dict[str, Any], caller: Caller) -> None:
        self.write(jsonrpc.notification(method, params) + b"\n")

    async def wait_ended(self) -> str:
        return await asyncio.shield(self._ended)

    async def subscribe(self, uris: frozenset[str]) -> None:
        if self.era == "modern":
            self._subscriptions = uris
            self._restart_listen()
            return
        before, self._subscriptions = self._subscriptions, uris
        for uri in sorted(uris - before):
            await self.request("resources/subscribe", {"uri": uri}, GATEWAY)
        for uri in sorted(before - uris):
            await self.request("resources/unsubscribe", {"uri": uri}, GATEWAY)

    # Inside

    async def _wait_writable(self) -> None:
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._writable.wait()
        except TimeoutError:
            raise RpcError(INTERNAL_ERROR, f"server {self._name!r} does not read its input") from None

    async def _set_log_level(self, level: str | None) -> None:
        self._log_level = level
        if "logging" in self.capabilities:
            with suppress(RpcError):
                await self.request("logging/setLevel", {"level": level}, GATEWAY)

    def _restart_listen(self) -> None:
        if self._listen is not None:
            self._listen.cancel()
        self._listen = asyncio.create_task(self._listen_once(self._subscriptions), name=f"listen {self._name}")

    async def _listen_once(self, uris: frozenset[str]) -> None:
        """One `subscriptions/listen` for as long as the connection lives; on stdio the request ends with it."""
        notifications: dict[str, Any] = {
            "toolsListChanged": True,
            "promptsListChanged": True,
            "resourcesListChanged": True,
        }
        if uris:
            notifications["resourceSubscriptions"] = sorted(uris)
        with suppress(RpcError, ConnectionEndedError):
            await self.request("subscriptions/listen", {"notifications": notifications}, GATEWAY)

    def _message(self, line: bytes) -> None:
        try:
            message, raw = jsonrpc.parse_message(line)
        except ValueError:
            logger.warning(
                "server %s wrote a line that is not JSON-RPC to its stdout (%d bytes)", self._name, len(line)
            )
            return
        method = message.get("method")
        if method is None:
            self._response(message, raw)
        elif not isinstance(method, str):
            logger.warning("server %s sent a method that is not a string", self._name)
        elif "id" in message:
            self._request(message["id"], method, message.get("params"))
        else:
            params = message.get("params")
            self._notification(method, params if isinstance(params, dict) else {})

    def _response(self, message: dict[str, Any], raw: bytes | None) -> None:
        entry = self._correlation.take(message.get("id"))
        if entry is None or entry.answer.done():
            return  # an answer to a request that was cancelled, or to none
        if "error" in message:
            entry.answer.set_exception(jsonrpc.as_error(message["error"]))
        else:
            entry.answer.set_result(Result(message.get("result"), raw))

    def _notification(self, method: str, params: dict[str, Any]) -> None:
        if method == "notifications/progress":
            caller = self._correlation.by_token(params.get("progressToken"))
            if caller is not None and (translated := with_client_token(params, caller)) is not None:
                caller.notify(method, translated)
        elif method == "notifications/message":
            caller = self._correlation.caller_for_log(params.get("level"))
            if caller is not None:
                caller.notify(method, params)
            elif not self._correlation.has_clients:
                self._listener(method, params)
        elif method == "notifications/cancelled":
            relay = self._relays.get(params.get("requestId", ""))
            if relay is not None:
                relay.cancel()
        else:
            self._listener(method, params)

    def _request(self, identifier: int | str, method: str, params: Any) -> None:
        if method == "ping":
            self.write(jsonrpc.response(identifier, Result({})) + b"\n")
            return
        try:
            if method not in CLIENT_REQUESTS:
                raise RpcError(METHOD_NOT_FOUND, f"the gateway knows no client that answers {method}")
            caller = self._correlation.caller_for_request(method)
        except RpcError as error:
            self.write(jsonrpc.error_response(identifier, error) + b"\n")
            return
        task = asyncio.create_task(self._relay(identifier, method, params, caller), name=f"{method} of {self._name}")
        self._relays[identifier] = task

    async def _relay(self, identifier: int | str, method: str, params: Any, caller: Caller) -> None:
        try:
            with self._correlation.asking(caller):
                answer = await caller.ask(method, params)
            self.write(jsonrpc.response(identifier, Result(answer)) + b"\n")
        except RpcError as error:
            self.write(jsonrpc.error_response(identifier, error) + b"\n")
        finally:
            self._relays.pop(identifier, None)


def _retrieved(future: "asyncio.Future[Any]") -> None:
    """The outcome of the slower of two first messages is of no interest; asyncio would complain that nobody looked."""
    if not future.cancelled():
        future.exception()


def _cancelled(identifier: int) -> bytes:
    return jsonrpc.notification("notifications/cancelled", {"requestId": identifier}) + b"\n"
