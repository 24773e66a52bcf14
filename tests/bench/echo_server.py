"""An MCP server with one tool that gives back what it got. On stdio it is `python3 -c <this file> <era>`.

Of the standard library alone and as cheap as can be, so that what is measured is the way to it. It speaks one era,
`legacy` (2025-11-25) or `modern` (2026-07-28), and its tool is `echo_<era>`.
"""

import json
import sys

INFO = {"name": "bench", "version": "1"}


def answer(message: dict[str, object], era: str) -> dict[str, object]:
    """The result or the error of a request, without its id."""
    method, params = message["method"], message.get("params")
    if method == "tools/call" and isinstance(params, dict):
        kind = {"resultType": "complete"} if era == "modern" else {}
        return {"result": {**kind, "content": [{"type": "text", "text": params["arguments"]["text"]}]}}
    found = answers(era).get(str(method))
    return {"error": {"code": -32601, "message": "Method not found"}} if found is None else {"result": found}


def answers(era: str) -> dict[str, object]:
    """By method, what is answered always the same way."""
    tool = {
        "name": "echo_" + era,
        "description": "Gives back the text.",
        "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    }
    if era == "legacy":
        return {
            "initialize": {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": INFO},
            "ping": {},
            "tools/list": {"tools": [tool]},
        }
    cached = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
    return {
        "server/discover": {**cached, "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}},
        "tools/list": {**cached, "tools": [tool]},
    }


def serve(era: str) -> None:
    for line in sys.stdin.buffer:
        received = json.loads(line)
        if "id" in received and received.get("method") != "subscriptions/listen":
            reply = {"jsonrpc": "2.0", "id": received["id"], **answer(received, era)}
            sys.stdout.write(json.dumps(reply, separators=(",", ":")) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
