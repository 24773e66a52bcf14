"""MCP over HTTP by hand, for what the official client would hide."""

import json
from collections.abc import Mapping
from typing import Any

import httpx

from tests.gateway.running_gateway import TOKEN

MODERN = "2026-07-28"
LEGACY = "2025-11-25"
ACCEPT = "application/json, text/event-stream"
META = "io.modelcontextprotocol/"
NAMES = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}


def base_headers(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "Accept": ACCEPT, "Content-Type": "application/json"}


def modern_meta(capabilities: Mapping[str, Any] | None = None, **extra: Any) -> dict[str, Any]:
    return {
        f"{META}protocolVersion": MODERN,
        f"{META}clientCapabilities": capabilities or {},
        f"{META}clientInfo": {"name": "test", "version": "1"},
        **extra,
    }


def modern_request(
    method: str,
    params: Mapping[str, Any] | None = None,
    *,
    identifier: int | str = 1,
    capabilities: Mapping[str, Any] | None = None,
    **meta: Any,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers and body of one request at 2026-07-28."""
    params = {**(params or {}), "_meta": modern_meta(capabilities, **meta)}
    headers = {**base_headers(), "MCP-Protocol-Version": MODERN, "Mcp-Method": method}
    if method in NAMES:
        headers["Mcp-Name"] = str(params[NAMES[method]])
    return headers, {"jsonrpc": "2.0", "id": identifier, "method": method, "params": params}


async def modern(http: httpx.AsyncClient, url: str, method: str, params: Any = None, **options: Any) -> httpx.Response:
    headers, body = modern_request(method, params, **options)
    return await http.post(url, headers=headers, json=body)


class LegacyWire:
    """A session opened by hand."""

    def __init__(self, http: httpx.AsyncClient, url: str, token: str = TOKEN, version: str = LEGACY) -> None:
        self.http = http
        self.url = url
        self.headers = base_headers(token)
        self.version = version
        self.opened: dict[str, Any] = {}
        self._last_id = 0

    async def open(self, capabilities: Mapping[str, Any] | None = None) -> "LegacyWire":
        params = {
            "protocolVersion": self.version,
            "capabilities": capabilities or {},
            "clientInfo": {"name": "test", "version": "1"},
        }
        answer = await self.post("initialize", params)
        self.headers["Mcp-Session-Id"] = answer.headers["mcp-session-id"]
        self.opened = answer.json()["result"]
        self.headers["MCP-Protocol-Version"] = self.opened["protocolVersion"]
        await self.notify("notifications/initialized")
        return self

    async def post(self, method: str, params: Any = None) -> httpx.Response:
        self._last_id += 1
        body: dict[str, Any] = {"jsonrpc": "2.0", "id": self._last_id, "method": method}
        if params is not None:
            body["params"] = params
        return await self.http.post(self.url, headers=self.headers, json=body)

    async def call(self, tool: str, arguments: Any = None, meta: Any = None) -> Any:
        """The response message of a tool call."""
        params = {"name": tool, "arguments": arguments or {}} | ({"_meta": meta} if meta else {})
        return messages(await self.post("tools/call", params))[-1]

    async def notify(self, method: str, params: Any = None) -> httpx.Response:
        body: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        if params is not None:
            body["params"] = params
        return await self.http.post(self.url, headers=self.headers, json=body)

    async def send(self, message: Mapping[str, Any]) -> httpx.Response:
        return await self.http.post(self.url, headers=self.headers, json={"jsonrpc": "2.0", **message})


def nested(depth: int) -> dict[str, Any]:
    """An object of so many levels."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"deeper": value}
    return value


def messages(response: httpx.Response) -> list[Any]:
    """The JSON-RPC messages of an answer, JSON or event stream."""
    if response.headers["content-type"] == "application/json":
        return [response.json()]
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ") and line[6:]]
