"""The command mcp-gateway against a real HTTP server in the gateway's place."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.agent.running_agent import PACKAGE_DIRECTORY
from tests.ports import free_port


@dataclass
class Gateway:
    """Answers every request the way it is told, and keeps what it was sent."""

    status: int = 200
    answer: dict[str, Any] = field(default_factory=lambda: {"ok": True})
    requests: list[tuple[str, str | None, Any]] = field(default_factory=list)
    """Path, Authorization and body."""
    port: int = 0


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    state = Gateway()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append((self.path, self.headers["Authorization"], body))
            answer = json.dumps(state.answer).encode()
            self.send_response(state.status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "mcp-gateway" / ".token"
    path.parent.mkdir()
    path.write_text("first-token")
    return path


def mcp_gateway(
    port: int, token_file: Path, *arguments: str, token: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "GATEWAY_ACCESS_TOKEN"}
    if token is not None:
        environment["GATEWAY_ACCESS_TOKEN"] = token
    return subprocess.run(
        [
            *(sys.executable, "-m", "sandgate_agent.mcp_gateway"),
            *("--port", str(port), "--token-file", str(token_file), *arguments),
        ],
        env={**environment, "PYTHONPATH": str(PACKAGE_DIRECTORY)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_a_configuration_is_sent_with_the_old_token_and_the_new_one_is_kept(gateway: Gateway, token_file: Path) -> None:
    servers = {"time": {}, "exa": {"apiKey": "geheim-ü"}}

    result = mcp_gateway(gateway.port, token_file, "--config", json.dumps(servers), token="second-token")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert gateway.requests == [("/requests", "Bearer first-token", {"mcp": servers, "token": "second-token"})]
    assert token_file.read_text() == "second-token"
    assert oct(token_file.stat().st_mode) == "0o100600"


def test_an_empty_configuration_is_a_configuration(gateway: Gateway, token_file: Path) -> None:
    assert mcp_gateway(gateway.port, token_file, "--config", "{}", token="t").returncode == 0


def test_without_a_token_in_the_environment_one_is_made(gateway: Gateway, token_file: Path) -> None:
    mcp_gateway(gateway.port, token_file, "--config", "{}")

    [(_, _, body)] = gateway.requests
    assert len(body["token"]) >= 32
    assert token_file.read_text() == body["token"]


def test_a_refused_configuration_is_one_line_and_changes_nothing(gateway: Gateway, token_file: Path) -> None:
    gateway.status, gateway.answer = 422, {"ok": False, "message": "unknown MCP server 'tiem': did\nyou mean 'time'?"}

    result = mcp_gateway(gateway.port, token_file, "--config", '{"tiem": {}}', token="second-token")

    assert (result.returncode, result.stderr) == (
        1,
        "mcp-gateway: unknown MCP server 'tiem': did you mean 'time'?\n",
    )
    assert token_file.read_text() == "first-token"


def test_a_configuration_nobody_settles_is_reported(gateway: Gateway, token_file: Path) -> None:
    gateway.status, gateway.answer = 504, {"ok": False}

    result = mcp_gateway(gateway.port, token_file, "--config", "{}", token="t")

    assert (result.returncode, "nobody settled the configuration in time" in result.stderr) == (1, True)


def test_a_configuration_that_is_not_json_is_refused_without_repeating_it(token_file: Path) -> None:
    result = mcp_gateway(free_port(), token_file, "--config", '{"exa": {"apiKey": "geheim"', token="t")

    assert result.returncode == 1
    assert result.stderr.startswith("mcp-gateway: --config is not valid JSON")
    assert "geheim" not in result.stderr


@pytest.mark.parametrize("config", ["[]", '"time"', '{"time": "yes"}'])
def test_a_configuration_that_is_no_map_of_servers_is_refused(config: str, token_file: Path) -> None:
    result = mcp_gateway(free_port(), token_file, "--config", config, token="t")

    assert (result.returncode, "must be a JSON object" in result.stderr) == (1, True)


@pytest.mark.parametrize("content", [b"two\nlines", "gr\u00fc\u20ac".encode(), b"\xff\xfe"])
def test_a_damaged_token_file_is_named_and_not_repeated(gateway: Gateway, token_file: Path, content: bytes) -> None:
    token_file.write_bytes(content)

    result = mcp_gateway(gateway.port, token_file, "--config", "{}")

    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"mcp-gateway: the file {token_file} holds no token")


def test_a_newline_after_the_token_does_no_harm(gateway: Gateway, token_file: Path) -> None:
    token_file.write_text("first-token\n")

    assert mcp_gateway(gateway.port, token_file, "pull", "time").returncode == 0
    assert gateway.requests[0][1] == "Bearer first-token"


def test_pull_asks_for_the_servers_by_name(gateway: Gateway, token_file: Path) -> None:
    result = mcp_gateway(gateway.port, token_file, "pull", "exa", "browserbase")

    assert result.returncode == 0
    assert gateway.requests == [("/requests", "Bearer first-token", {"pull": ["exa", "browserbase"]})]


@pytest.mark.parametrize("arguments", [["--config", "{}"], ["pull", "time"]])
def test_a_sandbox_without_a_gateway_says_so(arguments: list[str], token_file: Path) -> None:
    refused = mcp_gateway(free_port(), token_file, *arguments)
    token_file.unlink()
    without_token = mcp_gateway(free_port(), token_file, *arguments)

    for result in refused, without_token:
        assert (result.returncode, result.stderr.startswith("mcp-gateway: no MCP gateway runs in this sandbox")) == (
            1,
            True,
        )


def test_neither_a_configuration_nor_a_command_is_a_usage_error(token_file: Path) -> None:
    assert mcp_gateway(free_port(), token_file).returncode == 2
