"""Streamable HTTP as 2026-07-28 speaks it: one POST is one call, nothing is kept but calls that wait for input."""

import asyncio
import logging
from typing import Any

from sandgate_gateway import discovery, jsonrpc
from sandgate_gateway.aggregate import Aggregate
from sandgate_gateway.asgi import Headers, HttpError, Receive, Send, respond
from sandgate_gateway.downstream.calls import Calls
from sandgate_gateway.downstream.fanout import Fanout
from sandgate_gateway.downstream.listening import Listening
from sandgate_gateway.downstream.parking import Call, ModernCaller, Parking, finish_in_background
from sandgate_gateway.downstream.reply import EventStream, Reply
from sandgate_gateway.downstream.subscriptions import Subscriptions
from sandgate_gateway.headers import ROUTING_HEADERS, check_param_headers, check_routing_headers
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.protocol import (
    GATEWAY_INFO,
    HEADER_MISMATCH,
    INVALID_PARAMS,
    LEGACY_VERSIONS,
    LOG_LEVELS,
    META_CLIENT_CAPABILITIES,
    META_CLIENT_INFO,
    META_LOG_LEVEL,
    META_PROTOCOL_VERSION,
    META_SERVER_INFO,
    METHOD_NOT_FOUND,
    MODERN_HTTP_STATUS,
    MODERN_VERSIONS,
    UNSUPPORTED_VERSION,
)

logger = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""How long an answer may take before the reply becomes an event stream. The HTTP status of an error can only be told
before; proxies wait for 30 s at least."""

_SERVER_METHODS = frozenset(
    {
        "tools/list",
        "tools/call",
        "prompts/list",
        "prompts/get",
        "resources/list",
        "resources/templates/list",
        "resources/read",
        "completion/complete",
    }
)


class ModernClients:
    def __init__(self, aggregate: Aggregate, calls: Calls, fanout: Fanout, subscriptions: Subscriptions) -> None:
        self._aggregate = aggregate
        self._calls = calls
        self._listening = Listening(fanout, subscriptions)
        self._parking = Parking()
        self._ending: set[asyncio.Task[Any]] = set()

    def close(self) -> None:
        self._parking.close()
        self._listening.close()

    async def post(self, message: dict[str, Any], headers: Headers, token: str, receive: Receive, send: Send) -> None:
        if "id" not in message:
            # No notification from client to server is left in this era; those that come are acknowledged and dropped.
            version = headers.get("mcp-protocol-version")
            if version not in MODERN_VERSIONS:
                await self._refuse(send, None, _unsupported(version))
            else:
                await respond(send, 202)
            return
        if "method" not in message:
            raise HttpError(400, "Clients of this protocol version do not send responses.")
        identifier, method = message["id"], message["method"]
        params: dict[str, Any] = message.get("params") or {}
        try:
            meta = _checked_envelope(headers, method, params)
            if method == "subscriptions/listen":
                await self._listening.serve(identifier, params, receive, send)
                return
            if method not in _SERVER_METHODS and method != "server/discover":
                raise RpcError(METHOD_NOT_FOUND, f"Method not found: {method}")
            if method == "server/discover":
                await respond(send, 200, jsonrpc.response(identifier, self._discover()))
                return
            if method == "tools/call":
                await self._check_arguments(headers, params)
            await self._call(identifier, method, params, meta, token, receive, send)
        except RpcError as error:
            await self._refuse(send, identifier, error)

    async def _refuse(self, send: Send, identifier: Any, error: RpcError) -> None:
        await respond(send, MODERN_HTTP_STATUS.get(error.code, 200), jsonrpc.error_response(identifier, error))

    def _discover(self) -> Result:
        value: dict[str, Any] = {
            "resultType": "complete",
            "supportedVersions": [*MODERN_VERSIONS, *LEGACY_VERSIONS],
            "capabilities": self._aggregate.capabilities("modern"),
            "ttlMs": 0,
            "cacheScope": "private",
            "_meta": {META_SERVER_INFO: GATEWAY_INFO},
        }
        if instructions := self._aggregate.instructions():
            value["instructions"] = instructions
        return Result(value)

    async def _check_arguments(self, headers: Headers, params: dict[str, Any]) -> None:
        """Before the reply starts, because a mismatch must be a plain 400."""
        name = params.get("name")
        if not isinstance(name, str) or (self._aggregate.discovers and name in discovery.NAMES):
            return
        annotations = (await self._aggregate.tool(name)).annotations
        if annotations.arguments:
            check_param_headers(headers, headers.duplicated, annotations, params.get("arguments"))

    async def _call(
        self,
        identifier: Any,
        method: str,
        params: dict[str, Any],
        meta: dict[str, Any],
        token: str,
        receive: Receive,
        send: Send,
    ) -> None:
        reply = Reply(EventStream())
        progress_token = meta.get("progressToken")
        progress_token = progress_token if isinstance(progress_token, int | str) else None
        call = self._parking.resume(params, token)
        if call is None:
            level = meta.get(META_LOG_LEVEL)
            caller = ModernCaller(
                method,
                principal=token,
                client_info=meta.get(META_CLIENT_INFO),
                capabilities=meta[META_CLIENT_CAPABILITIES],
                version=meta[META_PROTOCOL_VERSION],
                log_level=level if level in LOG_LEVELS else None,
                progress_token=progress_token,
                reply=reply,
            )
            call = Call(caller, self._calls.handle(method, params, caller), name=f"{method} {identifier!r}")
        else:
            call.caller.reply, call.caller.progress_token = reply, progress_token
        answering = asyncio.create_task(self._answer(call, identifier, params, token, reply))
        try:
            await reply.write_to(
                receive, send, patience_s=PATIENCE_S, headers={}, on_disconnect=lambda: _cancel(answering)
            )
        finally:
            if not answering.done():
                answering.cancel()
            await asyncio.wait((answering,))

    async def _answer(self, call: Call, identifier: Any, params: dict[str, Any], token: str, reply: Reply) -> None:
        """Ends the reply in every case. Cancelled when the client is gone, which in this era cancels the call."""
        answer, status = None, 200
        try:
            result = await call.outcome()
            if result is None:
                result = self._parking.park(call, token, params)
            answer = jsonrpc.response(identifier, result)
        except RpcError as error:
            answer, status = jsonrpc.error_response(identifier, error), MODERN_HTTP_STATUS.get(error.code, 200)
        except asyncio.CancelledError:
            finish_in_background(call, self._ending)
            raise
        except Exception:
            logger.exception("%s could not be answered", call.caller.method)
            answer = jsonrpc.error_response(identifier, jsonrpc.own_failure(call.caller.method))
        finally:
            reply.finish(answer, status)


def _checked_envelope(headers: Headers, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """`params._meta` of a request that is in order, by the rules of 2026-07-28 in their order. Raises: RpcError."""
    if duplicated := headers.duplicated.intersection(ROUTING_HEADERS):
        raise RpcError(HEADER_MISMATCH, f"the header {min(duplicated)} appears more than once")
    meta = params.get("_meta")
    if not isinstance(meta, dict):
        raise RpcError(
            INVALID_PARAMS, f"params._meta must carry {META_PROTOCOL_VERSION} and {META_CLIENT_CAPABILITIES}"
        )
    for key in (META_PROTOCOL_VERSION, META_CLIENT_CAPABILITIES):
        if key not in meta:
            raise RpcError(INVALID_PARAMS, f"params._meta has no {key}")
    version = meta[META_PROTOCOL_VERSION]
    if headers.get("mcp-protocol-version") != version:
        raise RpcError(HEADER_MISMATCH, "the MCP-Protocol-Version header does not match the request's protocol version")
    check_routing_headers(headers, method, params)
    if version not in MODERN_VERSIONS:
        raise _unsupported(version)
    if not isinstance(meta[META_CLIENT_CAPABILITIES], dict):
        raise RpcError(INVALID_PARAMS, f"{META_CLIENT_CAPABILITIES} must be an object")
    return meta


def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()


def _unsupported(version: Any) -> RpcError:
    return RpcError(
        UNSUPPORTED_VERSION,
        "Unsupported protocol version",
        {"supported": [*MODERN_VERSIONS, *LEGACY_VERSIONS], "requested": version},
    )
