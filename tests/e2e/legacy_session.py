"""A session of the legacy era by hand, so that its id and its stream can outlive a control plane."""

from __future__ import annotations

from typing import Any

import httpx

INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


class LegacySession:
    def __init__(self, sandbox: dict[str, Any]) -> None:
        self.url = sandbox["mcp"]["url"]
        self.headers = {
            "Authorization": f"Bearer {sandbox['mcp']['token']}",
            "Accept": "application/json, text/event-stream",
        }
        answer = self._post({"id": 1, "method": "initialize", "params": INITIALIZE})
        self.headers["Mcp-Session-Id"] = answer.headers["Mcp-Session-Id"]
        self.headers["MCP-Protocol-Version"] = "2025-11-25"
        self._post({"method": "notifications/initialized"})

    def _post(self, message: dict[str, Any]) -> httpx.Response:
        answer = httpx.post(
            self.url, json={"jsonrpc": "2.0", **message}, headers=self.headers, trust_env=False, timeout=60
        )
        assert answer.status_code in (200, 202), answer.text
        return answer

    def call(self, tool: str) -> str:
        """The answer, as JSON or as an event."""
        return self._post({"id": 2, "method": "tools/call", "params": {"name": tool, "arguments": {}}}).text
