"""The fixture really refuses the era it was told to refuse: without that, the tests across eras would prove nothing."""

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conformance.processes import REPOSITORY, fixture_command, fixture_over_http
from tests.waiting import BOUND_S

MODERN_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
OPENING = {
    "legacy": {
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    },
    "modern": {"method": "server/discover", "params": {"_meta": MODERN_META}},
}
HEADERS = {
    "legacy": {},
    "modern": {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "server/discover"},
}


@pytest.mark.parametrize(
    ("server", "statuses"),
    [
        ("both", {"legacy": 200, "modern": 200}),
        ("legacy", {"legacy": 200, "modern": 400}),
        ("modern", {"legacy": 400, "modern": 200}),
    ],
)
def test_over_http_only_the_other_era_is_refused(server: str, statuses: dict[str, int], tmp_path: Path) -> None:
    with fixture_over_http(tmp_path / "fixture.log", server) as url:
        answers = {
            client: httpx.post(
                url,
                json={"jsonrpc": "2.0", "id": 1} | OPENING[client],
                headers={"Accept": "application/json, text/event-stream"} | HEADERS[client],
                timeout=BOUND_S,
                trust_env=False,
            )
            for client in OPENING
        }
    assert {client: answer.status_code for client, answer in answers.items()} == statuses


@pytest.mark.parametrize("client", ["legacy", "modern"])
@pytest.mark.parametrize("server", ["both", "legacy", "modern"])
def test_over_stdio_only_the_other_era_is_refused(server: str, client: str) -> None:
    answer = ask_over_stdio(fixture_command("--stdio", "--era", server), OPENING[client])
    assert ("result" in answer) == (server in ("both", client)), answer


def ask_over_stdio(command: list[str], request: dict[str, Any]) -> dict[str, Any]:
    """Sends one request, closes stdin, and waits for the server to answer it and end."""
    line = json.dumps({"jsonrpc": "2.0", "id": 1} | request) + "\n"
    ended = subprocess.run(
        command, cwd=REPOSITORY, input=line, capture_output=True, text=True, timeout=BOUND_S, check=True
    )
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[0])
    return answer
