"""Runs inside an image: start an MCP server over stdio, ask who it is and what tools it has, print both as JSON."""

import json
import os
import subprocess
import sys
import threading

os.makedirs(os.environ["HOME"])
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=os.environ["HOME"])
assert server.stdin is not None
assert server.stdout is not None
bound = threading.Timer(60, server.kill)
bound.start()


def send(message: dict[str, object]) -> None:
    server.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
    server.stdin.flush()


def answer(request_id: int) -> dict[str, object]:
    for line in server.stdout:
        message = json.loads(line)
        if message.get("id") == request_id and "method" not in message:
            return message["result"]
    raise SystemExit(f"{sys.argv[1]} ended without an answer to request {request_id}")


client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
send({"id": 1, "method": "initialize", "params": client})
server_info = answer(1)["serverInfo"]
send({"method": "notifications/initialized"})
send({"id": 2, "method": "tools/list"})
tools = answer(2)["tools"]
sys.stdout.write(json.dumps({"server": server_info, "tools": [tool["name"] for tool in tools], "uid": os.getuid()}))
bound.cancel()
server.kill()
