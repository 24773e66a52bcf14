"""The MCP endpoint: `/mcp` and `/health` as a raw ASGI application. Decides which era a request is of."""

import logging
from functools import lru_cache

import orjson

from sandgate_gateway import jsonrpc
from sandgate_gateway.asgi import (
    ClientGoneError,
    Headers,
    HttpError,
    Receive,
    Scope,
    Send,
    read_body,
    respond,
    respond_error,
)
from sandgate_gateway.configuration import Configuration
from sandgate_gateway.downstream.legacy import ALLOW, LegacyClients
from sandgate_gateway.downstream.modern import ModernClients
from sandgate_gateway.jsonrpc import RpcError
from sandgate_gateway.protocol import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    LEGACY_VERSIONS,
    META_PROTOCOL_VERSION,
    PARSE_ERROR,
)
from sandgate_gateway.security import check_bearer, check_browser

logger = logging.getLogger(__name__)

MAX_BODY = 4 * 1024 * 1024

_JSON, _EVENT_STREAM = "application/json", "text/event-stream"


class McpEndpoint:
    """`configuration` is set by whoever applies one; until then no token is accepted."""

    def __init__(self, legacy: LegacyClients, modern: ModernClients) -> None:
        self.configuration = Configuration()
        self._legacy = legacy
        self._modern = modern

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            match scope["path"]:
                case "/mcp" | "/mcp/":
                    await self._mcp(scope, receive, send)
                case "/health":
                    await _health(scope["method"], send)
                case _:
                    raise HttpError(404, "The MCP endpoint is /mcp.")
        except HttpError as error:
            await respond_error(send, error)
        except ClientGoneError:
            return

    async def _mcp(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope["headers"])
        check_browser(
            origin=headers.get("origin"),
            host=headers.get("host"),
            server_address=(scope.get("server") or (None,))[0],
            public_hosts=self.configuration.public_hosts,
        )
        token = check_bearer(headers.get("authorization"), self.configuration.tokens)
        version = headers.get("mcp-protocol-version")
        is_modern = version is not None and version not in LEGACY_VERSIONS and "mcp-session-id" not in headers
        match scope["method"]:
            case "POST":
                await self._post(headers, token, is_modern, receive, send)
            case "GET" | "DELETE" if is_modern:
                raise HttpError(405, "This protocol version only knows POST.", {"Allow": "POST"})
            case "GET":
                if _EVENT_STREAM not in _accepted(headers.get("accept")):
                    raise HttpError(406, "GET needs a client that accepts text/event-stream.")
                await self._legacy.get(headers, token, receive, send)
            case "DELETE":
                await self._legacy.delete(headers, token, send)
            case _:
                raise HttpError(405, "The MCP endpoint knows POST, GET and DELETE.", ALLOW)

    async def _post(self, headers: Headers, token: str, is_modern: bool, receive: Receive, send: Send) -> None:
        if len(_accepted(headers.get("accept"))) < 2:
            raise HttpError(406, "The client must accept application/json and text/event-stream.")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
            raise HttpError(415, "The body must be application/json.")
        body = await read_body(receive, headers, MAX_BODY)
        if jsonrpc.has_too_many_values(body):
            raise HttpError(413, f"The body has more than {jsonrpc.MAX_VALUES} values.")
        try:
            message = orjson.loads(body)
        except ValueError:
            await respond(send, 400, jsonrpc.error_response(None, RpcError(PARSE_ERROR, "Parse error")))
            return
        if (problem := _envelope_problem(message)) is not None:
            await respond(send, 400, jsonrpc.error_response(None, RpcError(INVALID_REQUEST, problem)))
        elif "params" in message and jsonrpc.has_long_integer(message["params"].get("arguments"), body):
            error = RpcError(
                INVALID_PARAMS, "an integer among the arguments does not fit into 64 bits; send it as text"
            )
            await respond(send, 400, jsonrpc.error_response(message.get("id"), error))
        elif _has_modern_envelope(message) or (is_modern and message.get("method") != "initialize"):
            await self._modern.post(message, headers, token, receive, send)
        else:
            await self._legacy.post(message, headers, token, receive, send)


def _envelope_problem(message: object) -> str | None:
    """Why this is not one JSON-RPC message; None if it is. Batches existed in 2025-03-26 only and are not supported."""
    if not isinstance(message, dict):
        return "The body must be a single JSON-RPC message; batches are not supported."
    if message.get("jsonrpc") != "2.0":
        return 'jsonrpc must be "2.0"'
    identifier = message.get("id", 0)
    if isinstance(identifier, bool) or not isinstance(identifier, int | str):
        return "id must be a string or an integer"
    if not isinstance(message.get("method", ""), str):
        return "method must be a string"
    if "method" not in message and not ("id" in message and ("result" in message or "error" in message)):
        return "a message needs a method, or an id with a result or an error"
    if not isinstance(message.get("params", {}), dict):
        return "params must be an object"
    return None


def _has_modern_envelope(message: dict[str, object]) -> bool:
    """A body of the modern era without its header: the modern side says which header is missing."""
    params = message.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    return isinstance(meta, dict) and META_PROTOCOL_VERSION in meta


@lru_cache(maxsize=64)
def _accepted(accept: str | None) -> frozenset[str]:
    """Which of the two media types of this endpoint a client takes. An absent Accept takes both (RFC 9110, 12.5.1)."""
    both = frozenset({_JSON, _EVENT_STREAM})
    if accept is None:
        return both
    ranges = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return frozenset(kind for kind in both if ranges & {kind, f"{kind.partition('/')[0]}/*", "*/*"})


async def _health(method: str, send: Send) -> None:
    if method not in ("GET", "HEAD"):
        raise HttpError(405, "Health is read with GET.", {"Allow": "GET, HEAD"})
    await respond(send, 200, b'{"status":"ok"}' if method == "GET" else b"")
