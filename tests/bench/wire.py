"""Requests as bytes, made once, which the load generator sends again and again; and a few that are sent once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import httpx

Era = Literal["legacy", "modern"]

LEGACY_VERSION = "2025-11-25"
MODERN_VERSION = "2026-07-28"
ACCEPT = "application/json, text/event-stream"
TEXT = "x" * 50
TIMEOUT_S = 180.0

_META = "io.modelcontextprotocol/"
_CLIENT = {"name": "bench", "version": "1"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A place that speaks MCP over HTTP."""

    host: str
    port: int
    path: str
    token: str

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}{self.path}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Accept": ACCEPT, "Content-Type": "application/json"}


def http_client() -> httpx.Client:
    """Without TLS, whose set-up takes longer than many a request here."""
    return httpx.Client(trust_env=False, verify=False, timeout=TIMEOUT_S)


def message(method: str, params: dict[str, Any], era: Era, identifier: int = 1) -> bytes:
    """One JSON-RPC request, with the envelope that every modern one carries."""
    if era == "modern":
        envelope = {"protocolVersion": MODERN_VERSION, "clientCapabilities": {}, "clientInfo": _CLIENT}
        params = {**params, "_meta": {f"{_META}{key}": value for key, value in envelope.items()}}
    request = {"jsonrpc": "2.0", "id": identifier, "method": method, "params": params}
    return json.dumps(request, separators=(",", ":")).encode()


def echo_call(tool: str, era: Era, identifier: int = 1) -> bytes:
    return message("tools/call", {"name": tool, "arguments": {"text": TEXT}}, era, identifier)


def http_echo_call(endpoint: Endpoint, tool: str, era: Era) -> bytes:
    """A whole HTTP request. At the legacy revision it belongs to a session of its own, which is opened here."""
    headers = dict(endpoint.headers)
    if era == "modern":
        headers |= _modern_headers("tools/call", tool)
    else:
        with http_client() as http:
            headers = open_session(http, endpoint)
    return http_post(endpoint, headers, echo_call(tool, era))


def http_post(endpoint: Endpoint, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"POST {endpoint.path} HTTP/1.1", f"Host: {endpoint.host}:{endpoint.port}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def open_session(http: httpx.Client, endpoint: Endpoint) -> dict[str, str]:
    """The headers of every further request of a new session, be it one that the server gave an id or not.

    Raises: httpx.HTTPError.
    """
    params = {"protocolVersion": LEGACY_VERSION, "capabilities": {}, "clientInfo": _CLIENT}
    answer = http.post(endpoint.url, headers=endpoint.headers, content=message("initialize", params, "legacy"))
    answer.raise_for_status()
    headers = {**endpoint.headers, "MCP-Protocol-Version": LEGACY_VERSION}
    if session := answer.headers.get("mcp-session-id"):
        headers["Mcp-Session-Id"] = session
    initialized = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    http.post(endpoint.url, headers=headers, json=initialized).raise_for_status()
    return headers


def list_tools(http: httpx.Client, endpoint: Endpoint, era: Era = "modern") -> list[str]:
    """Names of all tools: modern by one stateless request, legacy in a session of its own. Raises: httpx.HTTPError."""
    headers = endpoint.headers | _modern_headers("tools/list") if era == "modern" else open_session(http, endpoint)
    answer = http.post(endpoint.url, headers=headers, content=message("tools/list", {}, era))
    return [tool["name"] for tool in _result(answer)["tools"]]


def call_tool(http: httpx.Client, endpoint: Endpoint, tool: str, **arguments: object) -> None:
    """By one stateless request; what it answers must be no error. Raises: httpx.HTTPError."""
    headers = endpoint.headers | _modern_headers("tools/call", tool)
    body = message("tools/call", {"name": tool, "arguments": arguments}, "modern")
    result = _result(http.post(endpoint.url, headers=headers, content=body))
    assert not result.get("isError"), result


def _result(answer: httpx.Response) -> dict[str, Any]:
    """Of an answer that is JSON, or a stream whose last event is the answer."""
    answer.raise_for_status()
    text = answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        text = [line for line in text.splitlines() if line.startswith("data:")][-1].removeprefix("data:")
    message = json.loads(text)
    assert "result" in message, message
    return dict(message["result"])


def _modern_headers(method: str, name: str | None = None) -> dict[str, str]:
    headers = {"MCP-Protocol-Version": MODERN_VERSION, "Mcp-Method": method}
    return headers if name is None else {**headers, "Mcp-Name": name}
