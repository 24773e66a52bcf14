"""Streamable HTTP as legacy clients speak it (2024-11-05 to 2025-11-25): sessions, GET stream, resumption."""

import logging
from typing import Any

from sandgate_gateway import jsonrpc
from sandgate_gateway.aggregate import Aggregate
from sandgate_gateway.asgi import Headers, HttpError, Receive, Send, respond
from sandgate_gateway.downstream.calls import Calls
from sandgate_gateway.downstream.reply import Reply
from sandgate_gateway.downstream.sessions import Session, SessionCaller, Sessions
from sandgate_gateway.downstream.subscriptions import Subscriptions
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.protocol import (
    GATEWAY_INFO,
    INVALID_PARAMS,
    LATEST_LEGACY_VERSION,
    LEGACY_VERSIONS,
    LOG_LEVELS,
    MODERN_VERSION,
)
from sandgate_gateway.servers.fleet import Fleet

logger = logging.getLogger(__name__)

PATIENCE_S = 1.0
"""How long an answer may take before the reply becomes an event stream; a broken stream can be resumed, a broken JSON
answer is lost."""

MAX_CAPABILITIES = 8 * 1024
"""Bytes of what a client declares: a session keeps it."""

ALLOW = {"Allow": "GET, POST, DELETE"}


class LegacyClients:
    def __init__(
        self, fleet: Fleet, aggregate: Aggregate, calls: Calls, sessions: Sessions, subscriptions: Subscriptions
    ) -> None:
        self._fleet = fleet
        self._aggregate = aggregate
        self._calls = calls
        self._sessions = sessions
        self._subscriptions = subscriptions

    async def post(self, message: dict[str, Any], headers: Headers, token: str, receive: Receive, send: Send) -> None:
        """One JSON-RPC message of a client."""
        method = message.get("method")
        if method == "initialize" and "id" in message:
            await self._initialize(message, token, send)
            return
        session = self._session(headers, token)
        if "id" not in message:
            await self._notification(session, str(method), _params(message))
            await respond(send, 202)
        elif method is None:
            session.answered(message)
            await respond(send, 202)
        else:
            await self._request(session, message, receive, send)

    async def get(self, headers: Headers, token: str, receive: Receive, send: Send) -> None:
        """The stream for what belongs to no request; with Last-Event-ID, the rest of the stream that event is on."""
        session = self._session(headers, token)
        stream, after = session.background, session.background.delivered
        if event_id := headers.get("last-event-id"):
            found = session.stream_of(event_id)
            if found is None:
                raise HttpError(404, "This event is not known any more; the stream cannot be resumed.")
            stream, after = found
        stream.take_over()
        await stream.write_to(receive, send, after=after, headers=_session_headers(session), primed=_primes(session))

    async def delete(self, headers: Headers, token: str, send: Send) -> None:
        self._sessions.end(self._session(headers, token))
        await respond(send, 204)

    def _session(self, headers: Headers, token: str) -> Session:
        identifier = headers.get("mcp-session-id")
        if not identifier:
            raise HttpError(400, "The header Mcp-Session-Id is missing; a session starts with initialize.")
        session = self._sessions.get(identifier, token)
        if session is None:
            raise HttpError(404, "This session does not exist (any more); start a new one with initialize.")
        version = headers.get("mcp-protocol-version")
        if version is not None and version not in LEGACY_VERSIONS:
            raise HttpError(
                400, f"MCP-Protocol-Version must be one of {', '.join((MODERN_VERSION, *LEGACY_VERSIONS))}."
            )
        return session

    async def _initialize(self, message: dict[str, Any], token: str, send: Send) -> None:
        try:
            version, capabilities = _declared(_params(message))
        except RpcError as error:
            await respond(send, 400, jsonrpc.error_response(message["id"], error))
            return
        session = Session(token=token, version=version, capabilities=capabilities)
        self._sessions.add(session)
        value: dict[str, Any] = {
            "protocolVersion": session.protocol_version,
            "capabilities": self._aggregate.capabilities("legacy"),
            "serverInfo": GATEWAY_INFO,
        }
        if instructions := self._aggregate.instructions():
            value["instructions"] = instructions
        await respond(send, 200, jsonrpc.response(message["id"], Result(value)), {"Mcp-Session-Id": session.id})

    async def _notification(self, session: Session, method: str, params: dict[str, Any]) -> None:
        match method:
            case "notifications/cancelled":
                session.cancel(params.get("requestId"))
            case "notifications/roots/list_changed":
                caller = SessionCaller(session, Reply(session.background), None)
                for server in self._fleet.servers:
                    if server.connection is not None and server.connection.era == "legacy":
                        await server.connection.notify(method, {}, caller)

    async def _request(self, session: Session, message: dict[str, Any], receive: Receive, send: Send) -> None:
        reply = Reply(session.new_stream())
        try:
            session.start(message["id"], self._answer(session, message, reply))
        except RpcError as error:
            await respond(send, 400, jsonrpc.error_response(message["id"], error))
            return
        headers = {"Mcp-Session-Id": session.id}
        await reply.write_to(receive, send, patience_s=PATIENCE_S, headers=headers, primed=_primes(session))

    async def _answer(self, session: Session, message: dict[str, Any], reply: Reply) -> None:
        """The call itself. Ends the reply in every case; a cancelled call ends without an answer."""
        answer: bytes | None = None
        try:
            result = await self._dispatch(session, message["method"], _params(message), reply)
            answer = jsonrpc.response(message["id"], result)
        except RpcError as error:
            answer = jsonrpc.error_response(message["id"], error)
        except Exception:
            logger.exception("%s could not be answered", message["method"])
            answer = jsonrpc.error_response(message["id"], jsonrpc.own_failure(message["method"]))
        finally:
            reply.finish(answer)
            if answer is None:
                session.take_back(reply)

    async def _dispatch(self, session: Session, method: Any, params: dict[str, Any], reply: Reply) -> Result:
        match method:
            case "ping":
                return Result({})
            case "logging/setLevel":
                return await self._set_level(session, params)
            case "resources/subscribe":
                return await self._subscribe(session, _uri(params))
            case "resources/unsubscribe":
                session.subscriptions.discard(_uri(params))
                await self._subscriptions.remove(session.id, _uri(params))
                return Result({})
            case _:
                caller = SessionCaller(session, reply, _progress_token(params))
                return await self._calls.handle(str(method), params, caller)

    async def _subscribe(self, session: Session, uri: str) -> Result:
        session.subscriptions.add(uri)  # the server may tell of an update with its answer
        try:
            await self._subscriptions.add(session.id, uri)
        except RpcError:
            session.subscriptions.discard(uri)
            raise
        return Result({})

    async def _set_level(self, session: Session, params: dict[str, Any]) -> Result:
        level = params.get("level")
        if level not in LOG_LEVELS:
            raise RpcError(INVALID_PARAMS, f"level must be one of {', '.join(LOG_LEVELS)}")
        session.log_level = level
        return Result({})


def _params(message: dict[str, Any]) -> dict[str, Any]:
    params = message.get("params")
    return params if isinstance(params, dict) else {}


def _declared(params: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The version to speak with a client that sends these params of `initialize`, and its capabilities. Raises:
    RpcError."""
    requested, capabilities = params.get("protocolVersion"), params.get("capabilities", {})
    if not isinstance(requested, str) or not isinstance(capabilities, dict):
        raise RpcError(INVALID_PARAMS, "initialize needs protocolVersion, a string, and capabilities, an object")
    if len(jsonrpc.encode(capabilities)) > MAX_CAPABILITIES:
        raise RpcError(INVALID_PARAMS, f"capabilities are longer than {MAX_CAPABILITIES} bytes")
    return requested if requested in LEGACY_VERSIONS else LATEST_LEGACY_VERSION, capabilities


def _uri(params: dict[str, Any]) -> str:
    uri = params.get("uri")
    if not isinstance(uri, str):
        raise RpcError(INVALID_PARAMS, "the parameter uri must be a string")
    return uri


def _progress_token(params: dict[str, Any]) -> int | str | None:
    meta = params.get("_meta")
    token = meta.get("progressToken") if isinstance(meta, dict) else None
    return token if isinstance(token, int | str) else None


def _session_headers(session: Session) -> list[tuple[bytes, bytes]]:
    return [(b"mcp-session-id", session.id.encode())]


def _primes(session: Session) -> bool:
    """Clients before 2025-11-25 take an event without data for a broken message."""
    return session.protocol_version >= "2025-11-25"
