"""As much of an MCP client as it takes to list the tools behind a gateway (revision 2025-06-18, streamable HTTP)."""

from __future__ import annotations

from typing import Any

import httpx
import orjson

from app.errors import SandgateError
from app.sandboxes.pod_http import MIB, at_most

_REVISION = "2025-06-18"
_MOST = 32 * MIB
"""Bytes of one answer."""


class ToolListError(SandgateError):
    """The gateway answered with an error, or not in MCP."""


async def list_tools(http: httpx.AsyncClient, url: str, token: str, *, timeout_s: float) -> list[str]:
    """Names of all tools. Raises: ToolListError, httpx.HTTPError."""
    headers = {
        "Authorization": f"Bearer {token}",
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
        "MCP-Protocol-Version": _REVISION,
    }

    async def post(message: dict[str, Any]) -> httpx.Response:
        return await http.post(
            url, headers=headers, content=orjson.dumps(message), timeout=timeout_s, extensions=at_most(_MOST)
        )

    client = {"name": "sandgate-verify", "version": "1"}
    hello = {"protocolVersion": _REVISION, "capabilities": {}, "clientInfo": client}
    answer = await post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello})
    _result(answer)
    if (session := answer.headers.get("Mcp-Session-Id")) is not None:
        headers["Mcp-Session-Id"] = session
    await post({"jsonrpc": "2.0", "method": "notifications/initialized"})
    names: list[str] = []
    cursor: str | None = None
    while True:
        params = {} if cursor is None else {"cursor": cursor}
        page = _result(await post({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params}))
        names += [tool["name"] for tool in page["tools"]]
        cursor = page.get("nextCursor")
        if cursor is None:
            return names


def _result(answer: httpx.Response) -> dict[str, Any]:
    if not answer.is_success:
        raise ToolListError(f"The gateway answered {answer.status_code}: {answer.text[:500]}")
    body = answer.text
    if answer.headers.get("Content-Type", "").startswith("text/event-stream"):
        data = [line.removeprefix("data:") for line in body.splitlines() if line.startswith("data:")]
        messages = [orjson.loads(line) for line in data if line.strip()]
    else:
        messages = [orjson.loads(body)]
    for message in messages:
        if "error" in message:
            raise ToolListError(f"The gateway answered with an error: {message['error'].get('message')}")
        if "result" in message:
            return dict(message["result"])
    raise ToolListError("The gateway answered without a result.")
