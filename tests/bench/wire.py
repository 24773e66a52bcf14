"""Requests as bytes, made once: what the load generator sends again and again."""

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
        headers |= {"MCP-Protocol-Version": LEGACY_VERSION, "Mcp-Session-Id": open_session(endpoint)}
    return http_post(endpoint, headers, echo_call(tool, era))


def http_post(endpoint: Endpoint, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"POST {endpoint.path} HTTP/1.1", f"Host: {endpoint.host}:{endpoint.port}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def open_session(endpoint: Endpoint) -> str:
    """The id of a new session. Raises: httpx.HTTPStatusError."""
    params = {"protocolVersion": LEGACY_VERSION, "capabilities": {}, "clientInfo": _CLIENT}
    body = message("initialize", params, "legacy")
    answer = httpx.post(endpoint.url, headers=endpoint.headers, content=body, trust_env=False)
    answer.raise_for_status()
    return str(answer.headers["mcp-session-id"])


def list_tools(endpoint: Endpoint) -> list[str]:
    """Names of all tools, by one stateless request. Raises: httpx.HTTPStatusError."""
    headers = endpoint.headers | _modern_headers("tools/list")
    body = message("tools/list", {}, "modern")
    answer = httpx.post(endpoint.url, headers=headers, content=body, trust_env=False)
    answer.raise_for_status()
    return [tool["name"] for tool in answer.json()["result"]["tools"]]


def _modern_headers(method: str, name: str | None = None) -> dict[str, str]:
    headers = {"MCP-Protocol-Version": MODERN_VERSION, "Mcp-Method": method}
    return headers if name is None else {**headers, "Mcp-Name": name}
