"""A legacy stdio server without SDK that sends exactly what its script says, unknown fields included.

`python scripted_server.py '<json>'`. The script has any of: `capabilities`, `instructions`, `tools`, `prompts`,
`resources`, `resourceTemplates` (lists as they are answered), `label` (what resources say), `results` (tool name ->
result), `ignored` (methods that are never answered), `refused` (URIs that cannot be subscribed to), `updates` (whether
each subscription is answered with an update behind). A list that is null is answered with an error. A tool call whose
arguments hold `do` acts first: `exit` ends the process, `log` sends a notification, `ask` sends a request and returns
its answer as text, `hang` never answers, `rename` changes the tools and says so, `update` reports a resource as
updated, `cancelled`, `seen` and `answers` tell what came in, `wait` answers when another call does `release`, `goes_on`
does so too, but logs and asks before that when another call does `go_on`, `error` answers with this error until a
second call.
"""

import json
import os
import sys
from typing import Any

SCRIPT: dict[str, Any] = json.loads(sys.argv[1])
VERSION = "2025-11-25"

cancelled: list[Any] = []
asked: dict[Any, Any] = {}
held: list[Any] = []
kept: list[Any] = []
failed: list[Any] = []
seen: list[str] = []
answers: list[Any] = []


def send(*messages: dict[str, Any]) -> None:
    """In one piece."""
    lines = [json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")) + "\n" for message in messages]
    sys.stdout.write("".join(lines))
    sys.stdout.flush()


def text(value: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": value}]}


def handle(message: dict[str, Any]) -> None:
    method, params, identifier = message.get("method"), message.get("params") or {}, message.get("id")
    if method is None:
        call = asked.pop(identifier)
        answers.append(message.get("result", message.get("error")))
        send({"id": call, "result": text(json.dumps(answers[-1]))})
        return
    seen.append(method)
    if method == "notifications/cancelled":
        cancelled.append(params["requestId"])
    if identifier is None:
        return
    if method in SCRIPT.get("ignored", ()):
        return
    if method == "initialize":
        result: dict[str, Any] = {
            "protocolVersion": VERSION,
            "capabilities": SCRIPT.get("capabilities", {"tools": {"listChanged": True}}),
            "serverInfo": {"name": "scripted", "version": "1"},
        }
        if "instructions" in SCRIPT:
            result["instructions"] = SCRIPT["instructions"]
        send({"id": identifier, "result": result})
    elif method.endswith("/list"):
        kind = "resourceTemplates" if "templates" in method else method.partition("/")[0]
        if (items := SCRIPT.get(kind, [])) is None:
            send({"id": identifier, "error": {"code": -32603, "message": f"no {kind} today"}})
        else:
            send({"id": identifier, "result": {kind: items}})
    elif method == "tools/call":
        call_tool(identifier, params)
    elif method == "resources/read":
        contents = [{"uri": params["uri"], "text": f"{SCRIPT.get('label', 'content')} of {params['uri']}"}]
        send({"id": identifier, "result": {"contents": contents}})
    elif method == "prompts/get":
        link = {"type": "resource_link", "uri": "memo:one", "name": "one"}
        send({"id": identifier, "result": {"messages": [{"role": "user", "content": link}]}})
    elif method == "resources/subscribe" and params["uri"] in SCRIPT.get("refused", ()):
        send({"id": identifier, "error": {"code": -32602, "message": f"no updates of {params['uri']}"}})
    elif method == "resources/subscribe" and SCRIPT.get("updates"):
        send({"id": identifier, "result": {}}, {"method": "notifications/resources/updated", "params": params})
    elif method in ("resources/subscribe", "resources/unsubscribe", "logging/setLevel", "ping"):
        send({"id": identifier, "result": {}})
    else:
        send({"id": identifier, "error": {"code": -32601, "message": f"Method not found: {method}"}})


def call_tool(identifier: Any, params: dict[str, Any]) -> None:
    arguments = params.get("arguments") or {}
    token = (params.get("_meta") or {}).get("progressToken")
    match arguments.get("do"):
        case "exit":
            os._exit(7)
        case "hang":
            return
        case "wait":
            held.append((identifier, token))
            return
        case "release":
            for number, (call, its_token) in enumerate(held):
                if its_token is not None:
                    progress = {"progressToken": its_token, "progress": number, "message": f"call {number}"}
                    send({"method": "notifications/progress", "params": progress})
                send({"id": call, "result": text(f"released {number}")})
            held.clear()
            for call, _ in kept:
                send({"id": call, "result": text("too late")})
        case "log":
            send(
                {"method": "notifications/message", "params": {"level": arguments["level"], "data": arguments["data"]}}
            )
        case "ask":
            asked[f"q{identifier}"] = identifier
            send({"id": f"q{identifier}", "method": arguments["method"], "params": arguments.get("params", {})})
            return
        case "goes_on":
            kept.append((identifier, arguments))
            return
        case "go_on":
            # As if the call that was kept did it: the answer to its question ends this call.
            ((_, other),) = kept
            send({"method": "notifications/message", "params": other["log"]})
            asked["kept"] = identifier
            send({"id": "kept", **other["ask"]})
            return
        case "rename":
            SCRIPT["tools"] = arguments["tools"]
            send({"method": "notifications/tools/list_changed"})
        case "update":
            send({"method": "notifications/resources/updated", "params": {"uri": arguments["uri"]}})
        case "error" if not failed:
            failed.append(identifier)
            send({"id": identifier, "error": arguments["error"]})
            return
        case "cancelled":
            send({"id": identifier, "result": text(json.dumps(cancelled))})
            return
        case "answers":
            send({"id": identifier, "result": text(json.dumps(answers))})
            return
        case "seen":
            send({"id": identifier, "result": text(json.dumps(seen))})
            return
    result = SCRIPT.get("results", {}).get(params["name"], text(f"{params['name']} done by {os.getpid()}"))
    send({"id": identifier, "result": result})


for line in sys.stdin:
    handle(json.loads(line))
