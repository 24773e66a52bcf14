"""An MCP server on stdio with one tool that gives back what it got: `python3 -c <this file> <era>`.

Of the standard library alone and as cheap as can be, so that what is measured is the way to it. It speaks one era,
`legacy` (2025-11-25) or `modern` (2026-07-28), and its tool is `echo_<era>`.
"""

import json
import sys

ERA = sys.argv[1]
MODERN = ERA == "modern"
CACHED = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"} if MODERN else {}
TOOL = {
    "name": "echo_" + ERA,
    "description": "Gives back the text.",
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
}
INFO = {"name": "bench", "version": "1"}
ANSWERS: dict[str, object] = {
    "tools/list": {**CACHED, "tools": [TOOL]},
    "initialize": {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": INFO},
    "server/discover": {**CACHED, "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}},
}
ABSENT = "initialize" if MODERN else "server/discover"


def answer(message: dict[str, object]) -> dict[str, object]:
    method, params = message["method"], message.get("params")
    if method == "tools/call" and isinstance(params, dict):
        kind = {"resultType": "complete"} if MODERN else {}
        return {"result": {**kind, "content": [{"type": "text", "text": params["arguments"]["text"]}]}}
    if method in ANSWERS and method != ABSENT:
        return {"result": ANSWERS[str(method)]}
    return {"error": {"code": -32601, "message": "Method not found"}}


for line in sys.stdin.buffer:
    received = json.loads(line)
    if "id" in received and received.get("method") != "subscriptions/listen":
        reply = {"jsonrpc": "2.0", "id": received["id"], **answer(received)}
        sys.stdout.write(json.dumps(reply, separators=(",", ":")) + "\n")
        sys.stdout.flush()
