"""MCP gateways, each started the way its own documentation describes, with one streamable HTTP server behind it."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.bench.peers.environments import make_environment
from tests.bench.peers.peer import PeerProcess, Running, Upstream, serving_peer
from tests.bench.wire import Endpoint
from tests.ports import free_port

_HOST = "127.0.0.1"
_TOKEN_MINUTES = 600


@contextmanager
def fastmcp(folder: Path, upstream: Upstream) -> Iterator[Running]:
    """`fastmcp run` of a standard MCP configuration file (gofastmcp.com, "CLI")."""
    environment = make_environment("fastmcp", "fastmcp", folder / "environment")
    config, port = folder / "mcp.json", free_port()
    config.write_text(json.dumps({"mcpServers": {"echo": {"url": upstream.url, "transport": "http"}}}))
    command = [environment.program("fastmcp"), "run", str(config), "--transport", "http", "--host", _HOST]
    command += ["--port", str(port), "--no-banner", "--skip-env", "--log-level", "ERROR"]
    with serving_peer(
        f"fastmcp proxy {environment.version}", command, folder, {}, Endpoint(_HOST, port, "/mcp", "none")
    ) as running:
        yield running


@contextmanager
def litellm(folder: Path, upstream: Upstream) -> Iterator[Running]:
    """`mcp_servers` of the proxy's config.yaml (docs.litellm.ai, "MCP Overview"), with its one key and no database."""
    environment = make_environment("litellm", "litellm", folder / "environment")
    config, port, key = folder / "config.yaml", free_port(), f"sk-{secrets.token_hex(16)}"
    # JSON is YAML.
    settings = {
        "general_settings": {"master_key": key},
        "mcp_servers": {"echo": {"transport": "http", "url": upstream.url}},
    }
    config.write_text(json.dumps(settings))
    command = [environment.program("litellm"), "--config", str(config), "--host", _HOST, "--port", str(port)]
    # Otherwise it fetches prices of models at its start, and waits for that where it cannot.
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with serving_peer(
        f"LiteLLM proxy {environment.version}", command, folder, offline, Endpoint(_HOST, port, "/mcp", key)
    ) as running:
        yield running


@contextmanager
def context_forge(folder: Path, upstream: Upstream) -> Iterator[Running]:
    """`mcpgateway`, a token by its own tool, and the server by `POST /gateways` (its documentation, "Quick Start").

    Logs and limits of requests are off, the rest is as it comes, with SQLite.
    """
    environment = make_environment("contextforge", "mcp-contextforge-gateway", folder / "environment")
    port, signing_key = free_port(), secrets.token_hex(32)
    settings = {
        "JWT_SECRET_KEY": signing_key,
        "AUTH_ENCRYPTION_SECRET": secrets.token_hex(32),
        "BASIC_AUTH_PASSWORD": secrets.token_hex(16),
        "PLATFORM_ADMIN_PASSWORD": f"aA1!{secrets.token_hex(16)}",
        "DATABASE_URL": f"sqlite:///{folder / 'mcp.db'}",
        "MCPGATEWAY_UI_ENABLED": "false",
        "SSRF_ALLOWED_NETWORKS": json.dumps([f"{upstream.host}/32"]),
        "RATE_LIMITING_ENABLED": "false",
        "LOG_LEVEL": "ERROR",
    }
    make_token = [environment.program("python"), "-m", "mcpgateway.utils.create_jwt_token", "--admin"]
    make_token += ["--username", "admin@example.com", "--exp", str(_TOKEN_MINUTES), "--secret", signing_key]
    made = subprocess.run(
        make_token, cwd=folder, env=settings, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    token = made.strip().splitlines()[-1]
    root = Endpoint(_HOST, port, "", token)

    def register(process: PeerProcess) -> None:
        process.until(lambda http: http.get(f"{root.url}/health").is_success)
        echo = {"name": "echo", "url": upstream.url, "transport": "STREAMABLEHTTP"}
        process.until(lambda http: _accepted(http.post(f"{root.url}/gateways", headers=root.headers, json=echo)))

    command = [environment.program("mcpgateway"), "--host", _HOST, "--port", str(port), "--no-access-log"]
    with serving_peer(
        f"ContextForge {environment.version}",
        command,
        folder,
        settings,
        Endpoint(_HOST, port, "/mcp", token),
        register=register,
    ) as running:
        yield running


def _accepted(answer: httpx.Response) -> bool:
    """Raises: httpx.HTTPStatusError."""
    answer.raise_for_status()
    return True
