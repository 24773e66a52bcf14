"""A remote MCP server over streamable HTTP, in either era.

Everything that belongs to a call comes on the call's own stream, so nothing needs guessing here. Towards a legacy
server each legacy client has a session of its own, opened with that client's capabilities; modern clients with the same
capabilities share one; the gateway's housekeeping has another. A modern server has no sessions.
"""

import asyncio
import itertools
import logging
from typing import Any

import orjson

from sandgate_gateway import jsonrpc
from sandgate_gateway.callers import GATEWAY, Caller
from sandgate_gateway.cancelling import cancel_all
from sandgate_gateway.eras.outgoing import outgoing_params
from sandgate_gateway.eras.probe import declared, is_modern_refusal, modern_version, offered_version
from sandgate_gateway.headers import NO_ANNOTATIONS, Annotations, request_headers
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.protocol import INTERNAL_ERROR, LIST_CHANGED, MODERN_VERSION
from sandgate_gateway.upstreams.connection import (
    Connection,
    ConnectionEndedError,
    CouldNotConnectError,
    Listener,
    NotDeliveredError,
    OldTransportError,
)
from sandgate_gateway.upstreams.correlation import wants_log, with_client_token
from sandgate_gateway.upstreams.http_exchange import HttpExchanges, HttpStatusError, messages, pause_after
from sandgate_gateway.upstreams.http_session import HttpSession
from sandgate_gateway.upstreams.legacy_subscriptions import LegacySubscriptions
from sandgate_gateway.upstreams.sse_connection import speaks_sse

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 5.0
OLD_TRANSPORT_CHECK_S = 3.0
MAX_RECONNECTS = 5
"""Of the stream for changes, one after the other in vain; then the server counts as gone."""
RECONNECT_PAUSE_S = 0.5


class HttpConnection(Connection):
    def __init__(self, name: str, listener: Listener, exchanges: HttpExchanges, session_timeout_s: float) -> None:
        """`session_timeout_s` is how long a legacy server may take to open a session."""
        self.capabilities = {}
        self._name = name
        self._listener = listener
        self._exchanges = exchanges
        self._session_timeout_s = session_timeout_s
        self._ids = itertools.count(1)
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._sessions: dict[object, HttpSession] = {}
        self._opening: dict[object, asyncio.Task[HttpSession]] = {}
        self._listen: asyncio.Task[None] | None = None
        self._heard: asyncio.Task[None] | None = None
        """The one whose stream is open: `_listen`, or the one before it."""
        self._has_listened = False
        self._subscriptions: frozenset[str] = frozenset()
        self._legacy_subscriptions = LegacySubscriptions(name, self.request)
        self._annotations: dict[str, Annotations] = {}
        """Of the tools that have any, by name."""

    # Opening

    async def open(self, *, skip_probe: bool = False) -> None:
        if not skip_probe and await self._is_modern():
            self._restart_listen()
            return
        self.era = "legacy"
        try:
            session = await self._legacy_session(GATEWAY)
        except HttpStatusError as error:
            raise await self._why(error) from error
        self.protocol_version = session.protocol_version
        self.capabilities = session.capabilities
        self.instructions = session.instructions

    async def _is_modern(self) -> bool:
        self.era, self.protocol_version = "modern", MODERN_VERSION
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                result = await self._discover()
        except (TimeoutError, HttpStatusError):
            return False
        except RpcError as error:
            if is_modern_refusal(error):
                raise
            return False
        version = modern_version(result)
        if version is None:
            return False
        self.protocol_version = version
        self.capabilities, self.instructions = declared(result.value)
        return True

    async def _discover(self) -> Result:
        """A server that refuses the version and names one we speak is asked once more."""
        try:
            return await self._modern_request("server/discover", {}, GATEWAY)
        except RpcError as error:
            version = offered_version(error)
            if version is None:
                raise
            self.protocol_version = version
        return await self._modern_request("server/discover", {}, GATEWAY)

    async def _why(self, error: HttpStatusError) -> CouldNotConnectError:
        """What a refused `initialize` means."""
        if error.status in (401, 403):
            return CouldNotConnectError(f"refuses the configured credentials (HTTP status {error.status})", final=True)
        # 2025-11-25, basic/transports, backwards compatibility.
        if error.status in (400, 404, 405) and await speaks_sse(self._exchanges, OLD_TRANSPORT_CHECK_S):
            return OldTransportError("speaks HTTP+SSE")
        return CouldNotConnectError(
            f"{error}; its URL must be the one of a streamable HTTP endpoint", final=error.status < 500
        )

    # Connection

    async def request(self, method: str, params: dict[str, Any], caller: Caller) -> Result:
        if self._ended.done():
            raise NotDeliveredError(self._ended.result())
        try:
            if self.era == "modern":
                return await self._modern_request(method, params, caller)
            return await self._legacy_request(method, params, caller)
        except HttpStatusError as error:
            raise RpcError(INTERNAL_ERROR, f"server {self._name!r} {error}", {"server": self._name}) from error

    async def notify(self, method: str, params: dict[str, Any], caller: Caller) -> None:
        session = self._sessions.get(_session_key(caller))
        if session is not None:
            await session.notify(method, params)

    async def subscribe(self, uris: frozenset[str], timeout_s: float) -> dict[str, RpcError]:
        if self.era == "legacy":
            return await self._legacy_subscriptions.want(uris, timeout_s)
        if uris != self._subscriptions:
            self._subscriptions = uris
            self._restart_listen()
        return {}

    async def wait_ended(self) -> str:
        return await asyncio.shield(self._ended)

    async def forget(self, key: object) -> None:
        await self._give_up_opening([key])
        session = self._sessions.pop(key, None)
        if session is not None:
            await session.close(tell_server=True)

    async def close(self) -> None:
        await cancel_all({task for task in (self._listen, self._heard) if task is not None})
        await self._give_up_opening(list(self._opening))
        sessions, self._sessions = self._sessions, {}
        if sessions:
            async with asyncio.TaskGroup() as group:
                for session in sessions.values():
                    group.create_task(session.close(tell_server=not self._ended.done()))
        self._end("was stopped")
        await self._exchanges.close()

    def _end(self, how: str) -> None:
        if not self._ended.done():
            self._ended.set_result(how)

    @property
    def hears_changes(self) -> bool:
        session = self._sessions.get(GATEWAY.key)
        return self._heard is not None if self.era == "modern" else session is not None and session.is_listening

    # Legacy servers

    async def _legacy_request(self, method: str, params: dict[str, Any], caller: Caller) -> Result:
        try:
            session = await self._legacy_session(caller)
        except ConnectionEndedError as error:
            if self._ended.done():  # meanwhile: the call itself was not sent
                raise NotDeliveredError(str(error)) from error
            raise
        try:
            return await session.request(method, params, caller)
        except HttpStatusError as error:
            if error.status != 404:
                raise
        # The server has forgotten the session (2025-11-25, basic/transports, session management), so it has not begun.
        key = _session_key(caller)
        if self._sessions.get(key) is session:
            del self._sessions[key]
            await session.close(tell_server=False)
        return await (await self._legacy_session(caller)).request(method, params, caller)

    async def _legacy_session(self, caller: Caller) -> HttpSession:
        """Opened by the first request that needs it, for all that do. Raises: RpcError, ConnectionEndedError,
        HttpStatusError."""
        key = _session_key(caller)
        session = self._sessions.get(key)
        if session is not None:
            return session
        opening = self._opening.get(key)
        if opening is None:
            opening = asyncio.create_task(self._open_session(key, caller), name=f"session with {self._name}")
            self._opening[key] = opening
            opening.add_done_callback(lambda done: self._opened(key, done))
        await asyncio.wait((opening,))  # goes on for the others if this request is cancelled
        if opening.cancelled():
            raise ConnectionEndedError("was stopped")
        return opening.result()

    async def _open_session(self, key: object, caller: Caller) -> HttpSession:
        owner = caller if caller.era == "legacy" else _Anyone(caller.capabilities)
        session = HttpSession(self._name, self._exchanges, self._listener, owner, self._end)
        try:
            async with asyncio.timeout(self._session_timeout_s):
                await session.open()
        except TimeoutError:
            await session.close(tell_server=False)
            raise ConnectionEndedError(f"did not open a session within {self._session_timeout_s:g} s") from None
        except BaseException:
            await session.close(tell_server=False)
            raise
        self._sessions[key] = session
        return session

    def _opened(self, key: object, opening: asyncio.Task[HttpSession]) -> None:
        if self._opening.get(key) is opening:
            del self._opening[key]
        if not opening.cancelled():
            opening.exception()  # asyncio would complain if nobody waits for it any more

    async def _give_up_opening(self, keys: list[object]) -> None:
        await cancel_all([self._opening.pop(key) for key in keys if key in self._opening])

    # Modern servers

    async def _modern_request(self, method: str, params: dict[str, Any], caller: Caller) -> Result:
        identifier = next(self._ids)
        token = identifier if caller.progress_token is not None else None
        outgoing = outgoing_params("modern", self.protocol_version, params, caller, token)
        headers = request_headers(
            method, outgoing, self.protocol_version, self._annotations.get(str(params.get("name")), NO_ANNOTATIONS)
        )
        async with self._exchanges.post(jsonrpc.request(identifier, method, outgoing), headers) as response:
            async for incoming in messages(response):
                message = incoming.message
                if "method" in message:
                    self._modern_notification(message, caller)
                elif message.get("id") == identifier:
                    if "error" in message:
                        raise jsonrpc.as_error(message["error"])
                    result = Result(message.get("result"), incoming.raw)
                    return self._with_valid_tools(result) if method == "tools/list" else result
        raise ConnectionEndedError("closed the stream before it answered")

    def _modern_notification(self, message: dict[str, Any], caller: Caller) -> None:
        method, params = str(message["method"]), message.get("params")
        params = params if isinstance(params, dict) else {}
        pass_on(method, params, caller)
        if method == "notifications/subscriptions/acknowledged" and asyncio.current_task() is self._listen:
            if self._has_listened and self._heard is None:
                self._have_lists_read()
            self._hear(self._listen)
            self._has_listened = True
        if method in LIST_CHANGED or method == "notifications/resources/updated":
            self._listener(method, {key: value for key, value in params.items() if key != "_meta"})

    def _with_valid_tools(self, result: Result) -> Result:
        """Tools whose arguments are repeated in headers: that is the client's duty, so here the gateway's, as it is to
        drop a tool that does it wrong."""
        if b'"x-mcp-header"' not in result.raw or not isinstance(result.value, dict):
            return result
        valid = []
        for tool in result.value.get("tools") or ():
            annotations = Annotations(tool.get("inputSchema")) if isinstance(tool, dict) else NO_ANNOTATIONS
            if annotations.problem:
                logger.warning("a tool of server %s is left out: %s", self._name, annotations.problem)
                continue
            valid.append(tool)
            if annotations.arguments:
                self._annotations[str(tool.get("name"))] = annotations
        return Result({**result.value, "tools": valid})

    def _restart_listen(self) -> None:
        """The stream before is heard until there is an answer about the new one, so that nothing is said to nobody."""
        if self._listen is not None and self._listen is not self._heard:
            self._listen.cancel()
        self._listen = asyncio.create_task(self._keep_listening(self._subscriptions), name=f"listen {self._name}")

    def _hear(self, listen: "asyncio.Task[None] | None") -> None:
        """And none besides it any more."""
        before, self._heard = self._heard, listen
        if before is not None and before is not listen:
            before.cancel()

    async def _keep_listening(self, uris: frozenset[str]) -> None:
        """Hear of changes for as long as the connection lives. While a server that let itself be heard refuses to, its
        lists are good for as long as it says, like those of one that never did."""
        wanted: dict[str, Any] = {f"{capability}ListChanged": True for capability in LIST_CHANGED.values()}
        if uris:
            wanted["resourceSubscriptions"] = sorted(uris)
        this = asyncio.current_task()
        failures = refusals = 0
        loop = asyncio.get_running_loop()
        while failures < MAX_RECONNECTS:
            started = loop.time()
            is_final = False
            try:
                await self._modern_request("subscriptions/listen", {"notifications": wanted}, GATEWAY)
                # One that ends what it has just begun has nothing to tell.
                is_final = loop.time() - started < RECONNECT_PAUSE_S
                failures = refusals = 0
            except (RpcError, HttpStatusError) as error:
                is_final = not (self._has_listened and _may_pass(error))
                failures = 0  # something is there that answers
                refusals = 1 if self._heard is this else refusals + 1
            except ConnectionEndedError:
                failures = failures + 1 if loop.time() - started < RECONNECT_PAUSE_S else 0
                refusals = 0
            finally:
                if self._heard is this:
                    self._heard = None
            if self._listen is not this:
                return
            self._hear(None)  # a server may give a client no second stream while there is a first
            if self._has_listened and (is_final or refusals == 1):
                self._have_lists_read()
            if is_final:
                return
            pause = pause_after(refusals, RECONNECT_PAUSE_S) if refusals else RECONNECT_PAUSE_S * (failures + 1)
            await asyncio.sleep(pause)
        self._end("is not reachable any more")

    def _have_lists_read(self) -> None:
        """What changed lately may have been said to nobody."""
        for method in LIST_CHANGED:
            self._listener(method, {})


def _may_pass(error: RpcError | HttpStatusError) -> bool:
    return error.may_pass if isinstance(error, HttpStatusError) else error.code == INTERNAL_ERROR


def pass_on(method: str, params: dict[str, Any], caller: Caller) -> None:
    """A notification on a call's own stream to whoever made the call."""
    if method == "notifications/progress":
        if (translated := with_client_token(params, caller)) is not None:
            caller.notify(method, translated)
    elif method == "notifications/message" and wants_log(caller, params.get("level")):
        caller.notify(method, params)


def _session_key(caller: Caller) -> object:
    """Legacy clients have a session each, modern ones with equal capabilities share one."""
    if caller.era == "legacy":
        return caller.key
    return orjson.dumps(_known(caller.capabilities), option=orjson.OPT_SORT_KEYS)


class _Anyone(Caller):
    """Every modern client with these capabilities."""

    era = "modern"

    def __init__(self, capabilities: dict[str, Any]) -> None:
        self.capabilities = _known(capabilities)


def _known(capabilities: dict[str, Any]) -> dict[str, Any]:
    """What a legacy server can make use of, so that there are few different sets and few sessions."""
    known: dict[str, Any] = {}
    for name, parts in (("sampling", ("tools", "context")), ("elicitation", ("form", "url")), ("roots", ())):
        declared = capabilities.get(name)
        if declared is not None:
            declared = declared if isinstance(declared, dict) else {}
            known[name] = {part: {} for part in parts if part in declared}
    return known
