"""JSON-RPC with one server over a pair of byte streams, one JSON object a line: what stdio, door and bridge share.

All clients share the connection; correlation.py says whose message is whose.
"""

import asyncio
import logging
import re
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from sandgate_gateway import jsonrpc
from sandgate_gateway.allowance import MESSAGE_COST, STRAY_COST, Allowance
from sandgate_gateway.callers import GATEWAY, Caller
from sandgate_gateway.eras.outgoing import SHARED_CAPABILITIES, initialize_params, outgoing_params
from sandgate_gateway.eras.probe import accepted_legacy_version, declared, is_modern_refusal, modern_version
from sandgate_gateway.framing import LineReader, MessageTooLongError
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.protocol import CLIENT_REQUESTS, INTERNAL_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, MODERN_VERSION
from sandgate_gateway.upstreams.connection import Connection, ConnectionEndedError, Listener, NotDeliveredError
from sandgate_gateway.upstreams.correlation import Correlation, more_talkative, with_client_token
from sandgate_gateway.upstreams.legacy_subscriptions import LegacySubscriptions

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 5.0
"""A server that is still silent then is sent `initialize` as well; whichever it answers first tells its era."""

WRITE_TIMEOUT_S = 30.0
"""How long a server may leave its stdin unread before a request to it fails."""

MAX_RELAYS = 100
"""Questions of one server that wait for clients at the same time."""

_ID = re.compile(rb'"id"\s*:\s*"?(\d{1,18})\b')
_ID_WITHIN = 256
"""Bytes at either end of an answer in which its id is looked for if it cannot be parsed."""


class StreamConnection(Connection):
    """Subclasses move bytes: they implement `start`, `write`, `hold_back` and `close`, and call `received` and
    `ended`."""

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
        self._legacy_subscriptions = LegacySubscriptions(name, self.request)
        self._listen: asyncio.Task[None] | None = None
        self._unasked = Allowance()
        self._stray_lines = 0
        self._last_stray = b""

    # What subclasses do

    @abstractmethod
    async def start(self) -> None:
        """Connect or start the program. Raises: ConnectionEndedError."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Hand bytes to the server's stdin; silent once it is closed."""

    @abstractmethod
    def hold_back(self, seconds: float) -> None:
        """Leave what the server writes unread for so long."""

    def received(self, data: bytes) -> None:
        """Bytes from the server's stdout."""
        if self._ended.done():
            return
        try:
            lines = self._lines.feed(data)
        except MessageTooLongError as error:
            self.ended(f"sent {error}")
            return
        self.messages_received(lines)

    def messages_received(self, messages: Iterable[bytes]) -> None:
        """Whole messages from the server."""
        cost = sum([self._message(message) for message in messages])
        if cost and (pause := self._unasked.spend(cost)):
            self.hold_back(pause)

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
        self.capabilities, self.instructions = declared(value)
        self._restart_listen()

    async def _initialize(self) -> None:
        self.era = "legacy"
        result = await self.request("initialize", initialize_params(SHARED_CAPABILITIES), GATEWAY)
        self.protocol_version = accepted_legacy_version(result.value)
        self.era = "legacy"
        self.capabilities, self.instructions = declared(result.value)
        self.write(jsonrpc.notification("notifications/initialized") + b"\n")

    async def request(self, method: str, params: dict[str, Any], caller: Caller) -> Result:
        if self._ended.done():
            raise NotDeliveredError(self._ended.result())
        if self.era == "legacy" and more_talkative(caller.log_level, self._log_level):
            await self._set_log_level(caller.log_level)
        if not self._writable.is_set():
            await self._wait_writable()
        if self._ended.done():  # meanwhile: nobody would fail what is added now
            raise NotDeliveredError(self._ended.result())
        entry = self._correlation.add(caller, asyncio.get_running_loop().create_future())
        token = entry.identifier if caller.progress_token is not None else None
        outgoing = outgoing_params(self.era, self.protocol_version, params, caller, token)
        try:
            self.write(jsonrpc.request(entry.identifier, method, outgoing) + b"\n")
            return await entry.answer
        except RpcError:
            self._correlation.take(entry.identifier)  # if it could not be written
            raise
        except asyncio.CancelledError:
            self._correlation.cancel(entry.identifier)
            if method not in ("initialize", "server/discover"):  # these must not be cancelled (both revisions)
                self.write(_cancelled(entry.identifier))
            raise

    async def notify(self, method: str, params: dict[str, Any], caller: Caller) -> None:
        self.write(jsonrpc.notification(method, params) + b"\n")

    async def wait_ended(self) -> str:
        return await asyncio.shield(self._ended)

    async def subscribe(self, uris: frozenset[str], timeout_s: float) -> dict[str, RpcError]:
        if self.era == "legacy":
            return await self._legacy_subscriptions.want(uris, timeout_s)
        self._subscriptions = uris
        self._restart_listen()
        return {}

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
            with suppress(RpcError, ConnectionEndedError):  # the request that needs it finds out by itself
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

    @property
    def oddity(self) -> str | None:
        if not self._stray_lines:
            return None
        last = self._last_stray.decode("utf-8", "replace")
        return f"wrote {self._stray_lines} lines to stdout that are not JSON-RPC, the last one: {last!r}"

    def _message(self, line: bytes) -> int:
        """Takes in one message; what it costs of the allowance, which is nothing for an answer somebody waits for."""
        try:
            message, raw = jsonrpc.parse_message(line)
        except ValueError:
            return self._unreadable(line)
        method, identifier = message.get("method"), message.get("id")
        if method is None and "id" in message:
            return self._response(message, raw, line)
        if not isinstance(method, str) or not isinstance(identifier, str | int | None):
            return self._stray(line)
        if "id" in message and identifier is not None:
            self._request(identifier, method, message.get("params"))
        else:
            params = message.get("params")
            self._notification(method, params if isinstance(params, dict) else {})
        return MESSAGE_COST + len(line)

    def _unreadable(self, line: bytes) -> int:
        """An answer that is not valid JSON, or nested too deeply, fails its call; anything else is a stray print."""
        found = _ID.search(line[:_ID_WITHIN]) or _ID.search(line[-_ID_WITHIN:]) if line.startswith(b"{") else None
        entry = self._correlation.take(int(found[1])) if found else None
        if entry is None or entry.answer.done():
            return self._stray(line)
        problem = f"server {self._name!r} sent an answer of {len(line)} bytes that cannot be read as JSON"
        entry.answer.set_exception(RpcError(INTERNAL_ERROR, problem, {"server": self._name}))
        return 0

    def _stray(self, line: bytes) -> int:
        self._stray_lines += 1
        self._last_stray = line[:_ID_WITHIN]
        if str(self._stray_lines).strip("0") == "1":  # the 1st, 10th, 100th …: a log is no place for floods
            logger.warning(
                "server %s wrote a line to stdout that is not JSON-RPC (number %d)", self._name, self._stray_lines
            )
        return STRAY_COST + len(line)

    def _response(self, message: dict[str, Any], raw: bytes | None, line: bytes) -> int:
        entry = self._correlation.take(message.get("id"))
        if entry is None or entry.answer.done():
            return MESSAGE_COST + len(line)  # for a request that was cancelled or answered before, or for none
        if "error" in message:
            entry.answer.set_exception(jsonrpc.as_error(message["error"]))
        elif "result" in message:
            entry.answer.set_result(Result(message["result"], raw))
        else:
            problem = f"server {self._name!r} sent an answer without a result"
            entry.answer.set_exception(RpcError(INTERNAL_ERROR, problem, {"server": self._name}))
        return 0

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
            identifier = params.get("requestId")
            if isinstance(identifier, str | int) and (relay := self._relays.get(identifier)) is not None:
                relay.cancel()
        else:
            self._listener(method, params)

    def _request(self, identifier: int | str, method: str, params: Any) -> None:
        if method == "ping":
            self._reply(jsonrpc.response(identifier, Result({})))
            return
        try:
            if method not in CLIENT_REQUESTS:
                raise RpcError(METHOD_NOT_FOUND, f"the gateway knows no client that answers {method}")
            if identifier in self._relays or len(self._relays) >= MAX_RELAYS:
                raise RpcError(INVALID_REQUEST, f"this id is in use, or more than {MAX_RELAYS} requests are waiting")
            caller = self._correlation.caller_for_request(method)
        except RpcError as error:
            self._reply(jsonrpc.error_response(identifier, error))
            return
        task = asyncio.create_task(self._relay(identifier, method, params, caller), name=f"{method} of {self._name}")
        self._relays[identifier] = task
        task.add_done_callback(lambda _: self._relays.pop(identifier, None))  # also if cancelled before its first step

    async def _relay(self, identifier: int | str, method: str, params: Any, caller: Caller) -> None:
        try:
            with self._correlation.asking(caller):
                answer = await caller.ask(method, params)
            self._reply(jsonrpc.response(identifier, Result(answer)))
        except RpcError as error:
            self._reply(jsonrpc.error_response(identifier, error))

    def _reply(self, answer: bytes) -> None:
        """A server that asks without reading the answers does not get any, because they would pile up."""
        if self._writable.is_set():
            self.write(answer + b"\n")


def _retrieved(future: "asyncio.Future[Any]") -> None:
    """The outcome of the slower of two first messages is of no interest; asyncio would complain that nobody looked."""
    if not future.cancelled():
        future.exception()


def _cancelled(identifier: int) -> bytes:
    return jsonrpc.notification("notifications/cancelled", {"requestId": identifier}) + b"\n"
