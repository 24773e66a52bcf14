"""The control door (docs/ARCHITECTURE.md, 6.4): how the control plane configures the gateway and reads its state."""

import asyncio
import hashlib
import hmac
from collections.abc import Collection
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson

from sandgate_gateway.asgi import (
    ClientGoneError,
    Headers,
    HttpError,
    Receive,
    Scope,
    Send,
    disconnected,
    read_body,
    respond_error,
    respond_json,
)
from sandgate_gateway.cancelling import cancel_all
from sandgate_gateway.configuration import parse_configuration
from sandgate_gateway.control_plane_requests import ControlPlaneRequests, RefusedError, TooManyRequestsError
from sandgate_gateway.fields import ConfigurationError
from sandgate_gateway.gateway import Gateway
from sandgate_gateway.jsonrpc import MAX_DEPTH, is_writable

CONTROL_TOKEN_DIGEST = "SANDGATE_CONTROL_TOKEN_SHA256"
"""The variable with which the container is made."""

MAX_BODY = 64 * 1024 * 1024
"""Of a configuration, which may hold the remembered lists of many servers; only the control plane can send so much."""

MAX_REQUEST = 4 * 1024 * 1024
"""Of a request from the workspace."""
MAX_WAIT_S = 120.0


class ControlEndpoint:
    def __init__(self, gateway: Gateway, requests: ControlPlaneRequests, control_token_digest: str) -> None:
        self._gateway = gateway
        self._requests = requests
        self._control_token_digest = control_token_digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            status, answer = await self._answer(scope, receive)
            await respond_json(send, status, answer)
        except HttpError as error:
            await respond_error(send, error)
        except ClientGoneError:
            return

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, Any]:
        headers = Headers(scope["headers"])
        match scope["method"], scope["path"]:
            case "GET", "/health":
                return 200, {"status": "ok"}
            case "PUT", "/config":
                self._authorize(headers)
                return await self._configure(await _json(receive, headers))
            case "GET", "/status":
                self._authorize(headers)
                return await self._status(_wait(scope), unless_listed=_query(scope, "until") == "listed")
            case "GET", "/lists":
                self._authorize(headers)
                return 200, self._lists(_query(scope, "server"), partial=_query(scope, "partial") == "1")
            case "GET", "/requests":
                self._authorize(headers)
                known = frozenset(filter(None, (_query(scope, "known") or "").split(",")))
                return 200, {"requests": await self._poll(known, _wait(scope), receive)}
            case "POST", "/requests":
                self._authorize_workspace(headers)
                return await self._submit(await _json(receive, headers, MAX_REQUEST))
            case "POST", path if path.startswith("/requests/"):
                self._authorize(headers)
                return self._settle(unquote(path.removeprefix("/requests/")), await _json(receive, headers))
            case _, ("/config" | "/status" | "/lists" | "/requests" | "/health"):
                raise HttpError(405, f"{scope['path']} does not know {scope['method']}.")
            case _:
                raise HttpError(404, "The control door knows /config, /status, /lists, /requests and /health.")

    async def _configure(self, body: Any) -> tuple[int, Any]:
        try:
            configuration = parse_configuration(body)
        except ConfigurationError as error:
            raise HttpError(400, str(error)) from error
        await self._gateway.configure(configuration)
        return 200, self._gateway.fleet.status()

    async def _status(self, wait_s: float, *, unless_listed: bool) -> tuple[int, Any]:
        try:
            async with asyncio.timeout(wait_s):
                await self._gateway.fleet.settled(unless_listed=unless_listed)
        except TimeoutError:
            pass  # the state shows which ones are still starting
        return 200, self._gateway.fleet.status()

    def _lists(self, name: str | None, *, partial: bool) -> Any:
        server = self._gateway.fleet.get(name or "")
        if server is None:
            raise HttpError(404, f"There is no server {name!r}; name one with ?server=.")
        offer = server.offer(partial=partial)
        if offer is None:
            raise HttpError(409, f"The server {name!r} is {server.state}; it has not listed anything itself yet.")
        return offer.as_json()

    async def _poll(self, known: Collection[str], wait_s: float, receive: Receive) -> list[dict[str, Any]]:
        """Nothing is handed to an asker that hangs up while it waits. Raises: ClientGoneError."""
        polling = asyncio.create_task(self._requests.waiting(known, wait_s), name="poll for requests")
        gone = asyncio.create_task(disconnected(receive), name="watch for the poll's disconnect")
        try:
            await asyncio.wait((polling, gone), return_when=asyncio.FIRST_COMPLETED)
            if not polling.done():
                raise ClientGoneError
            return polling.result()
        finally:
            await cancel_all((polling, gone))

    async def _submit(self, body: dict[str, Any]) -> tuple[int, Any]:
        if not isinstance(body.get("mcp"), dict) and not isinstance(body.get("pull"), list):
            raise HttpError(400, "The body needs mcp, an object, or pull, a list.")
        if "mcp" in body and not isinstance(body.get("token"), str):
            raise HttpError(400, "token must be a string.")
        if not is_writable(body):
            raise HttpError(400, f"The body is nested more than {MAX_DEPTH} deep.")
        try:
            await self._requests.configure({key: body[key] for key in ("mcp", "token", "pull") if key in body})
        except RefusedError as error:
            return 422, {"ok": False, "message": str(error)}
        except TooManyRequestsError:
            raise HttpError(429, "Too many configuration requests are waiting.") from None
        except TimeoutError:
            return 504, {"ok": False, "message": "The control plane has not answered."}
        return 200, {"ok": True}

    def _settle(self, identifier: str, body: dict[str, Any]) -> tuple[int, Any]:
        if not isinstance(body.get("ok"), bool):
            raise HttpError(400, "ok must be true or false.")
        message = body.get("message")
        refused = RefusedError(message if isinstance(message, str) else "refused")
        if not self._requests.settle(identifier, body.get("outcome") if body["ok"] else refused):
            raise HttpError(404, "This request does not wait (any more).")
        return 200, {"ok": True}

    def _authorize(self, headers: Headers) -> None:
        digest = hashlib.sha256(_bearer(headers)).hexdigest()
        if not hmac.compare_digest(digest, self._control_token_digest):
            raise HttpError(401, "The control token is required.", {"WWW-Authenticate": "Bearer"})

    def _authorize_workspace(self, headers: Headers) -> None:
        given = _bearer(headers)
        matches = [hmac.compare_digest(given, token.encode()) for token in self._gateway.tokens]
        if not given or not any(matches):
            raise HttpError(401, "A current MCP token is required.", {"WWW-Authenticate": "Bearer"})


def _bearer(headers: Headers) -> bytes:
    """The token that is shown; empty without one, which no token is."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given.strip().encode("utf-8", "surrogatepass") if scheme.lower() == "bearer" else b""


def _query(scope: Scope, name: str) -> str | None:
    """The last value of a parameter in the address."""
    values = parse_qs(scope["query_string"].decode("latin-1")).get(name)
    return values[-1] if values else None


def _wait(scope: Scope) -> float:
    """Seconds of `?wait=`, at most MAX_WAIT_S; 0 without it."""
    try:
        seconds = float(_query(scope, "wait") or "0")
    except ValueError:
        raise HttpError(400, "wait must be a number of seconds.") from None
    return min(max(seconds, 0.0), MAX_WAIT_S) if seconds == seconds else 0.0  # noqa: PLR0124 (NaN)


async def _json(receive: Receive, headers: Headers, limit: int = MAX_BODY) -> dict[str, Any]:
    try:
        body = orjson.loads(await read_body(receive, headers, limit))
    except ValueError:
        raise HttpError(400, "The body is not JSON.") from None
    if not isinstance(body, dict):
        raise HttpError(400, "The body must be a JSON object.")
    return body
