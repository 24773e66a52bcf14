"""What the edge answers itself, instead of a sandbox.

The texts are part of the wire contract, as E2B's proxy has them: its SDKs look for "was not found" and "port is not
open" in them.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass

import orjson
from starlette.types import Scope, Send

TRAFFIC_TOKEN_HEADER = "e2b-traffic-access-token"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{status} {message}</title></head>
<body style="font-family: sans-serif; margin: 4rem auto; max-width: 40rem">
<h1>{message}</h1>
<p>{details}</p>
</body></html>
"""

_UNAVAILABLE = 503
_RETRY_AFTER_S = 5
_BAD_GATEWAY = 1014
"""WebSocket close code, IANA registry."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request does not reach a sandbox. Never holds the address of a pod."""

    status: int
    message: str
    sandbox_id: str | None = None
    port: int | None = None

    def json(self) -> bytes:
        fields: dict[str, object] = {}
        if self.sandbox_id is not None:
            fields["sandboxId"] = self.sandbox_id
        fields["message"] = self.message
        if self.port is not None:
            fields["port"] = self.port
        fields["code"] = self.status
        return orjson.dumps(fields)

    def page(self) -> bytes:
        known = [("Sandbox", self.sandbox_id), ("Port", self.port)]
        details = " · ".join(f"{name} {html.escape(str(value))}" for name, value in known if value is not None)
        return _PAGE.format(status=self.status, message=html.escape(self.message), details=details).encode()


def not_found(sandbox_id: str) -> Refusal:
    """The sandbox is unknown, killed, expired, or paused and not to be resumed by traffic."""
    return Refusal(502, "The sandbox was not found", sandbox_id)


def not_there_yet(sandbox_id: str | None = None) -> Refusal:
    """The server has just been started and does not know yet where it is."""
    return Refusal(503, "The sandbox is not available yet. Try again in a moment.", sandbox_id)


def port_not_open(sandbox_id: str, port: int) -> Refusal:
    return Refusal(502, "The sandbox is running but port is not open", sandbox_id, port)


def traffic_token_missing(sandbox_id: str) -> Refusal:
    message = f"Sandbox is secured with traffic access token. Token header '{TRAFFIC_TOKEN_HEADER}' is missing"
    return Refusal(403, message, sandbox_id)


def traffic_token_invalid(sandbox_id: str) -> Refusal:
    message = "Sandbox is secured with traffic access token. Provided token in header "
    return Refusal(403, f"{message}'{TRAFFIC_TOKEN_HEADER}' is invalid", sandbox_id)


def may_not_resume(sandbox_id: str) -> Refusal:
    """A paused sandbox is not woken by somebody who could not use it."""
    message = "This sandbox can't be resumed with the credentials provided. Check your access token and try again."
    return Refusal(403, message, sandbox_id)


def in_transition(sandbox_id: str) -> Refusal:
    """The sandbox is being paused or resumed, and that takes longer than a request may wait."""
    return Refusal(409, "The sandbox is still transitioning. Try again in a moment.", sandbox_id)


def too_many_connections(sandbox_id: str, limit: int) -> Refusal:
    message = f"The sandbox has too many concurrent incoming connections (limit: {limit})"
    return Refusal(429, message, sandbox_id)


def broken_off(sandbox_id: str, port: int) -> Refusal:
    """The port is open, but no complete HTTP response head came back."""
    return Refusal(502, "The service in the sandbox closed the connection without a valid answer", sandbox_id, port)


async def send_refusal(scope: Scope, send: Send, refusal: Refusal) -> None:
    """Answers an HTTP request or a WebSocket handshake; in HTML if a browser navigates, otherwise in JSON."""
    prefix = "http.response" if scope["type"] == "http" else "websocket.http.response"
    if scope["type"] == "websocket" and prefix not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": _BAD_GATEWAY, "reason": refusal.message})
        return
    as_page = scope.get("method") in ("GET", "HEAD") and _is_navigation(scope["headers"])
    body = refusal.page() if as_page else refusal.json()
    content_type = b"text/html; charset=utf-8" if as_page else b"application/json"
    headers = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    if refusal.status == _UNAVAILABLE:
        headers.append((b"retry-after", b"%d" % _RETRY_AFTER_S))
    await send({"type": f"{prefix}.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{prefix}.body", "body": body, "more_body": False})


def _is_navigation(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name == b"accept" and b"text/html" in value.lower() for name, value in headers)
