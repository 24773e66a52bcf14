"""Runs inside an image: start an MCP server over stdio, list its tools, print them as JSON with the user id it has."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import IO, Any

BOUND_S = 60


def ask(requests: IO[bytes], answers: IO[bytes], number: int, method: str, params: Mapping[str, object]) -> Any:
    message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    requests.write(json.dumps(message).encode() + b"\n")
    requests.flush()
    for line in answers:
        answer = json.loads(line)
        if answer.get("id") == number and "method" not in answer:
            return answer["result"]
    raise SystemExit(f"the server ended without an answer to {method}")


def main() -> None:
    home = os.environ["HOME"]
    os.makedirs(home)
    with subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=home) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        bound = threading.Timer(BOUND_S, server.kill)
        bound.start()
        try:
            client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
            ask(server.stdin, server.stdout, 1, "initialize", client)
            server.stdin.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')
            tools = ask(server.stdin, server.stdout, 2, "tools/list", {})["tools"]
        finally:
            bound.cancel()
            server.kill()
    sys.stdout.write(json.dumps({"tools": [tool["name"] for tool in tools], "uid": os.getuid()}))


main()
