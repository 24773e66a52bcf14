"""OpenSandbox's server on Docker: its start, its memory, and a create of the same image as Sandgate's workspace."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.bench.peers.environments import make_environment
from tests.bench.peers.peer import PeerProcess
from tests.bench.processes import rss_mib
from tests.bench.results import Row, Section
from tests.bench.wire import http_client
from tests.ports import free_port

_LARGEST_REASON = 100


def measure(folder: Path, image: str) -> Iterator[Section]:
    """`opensandbox-server --config`, set as in its packaged example for Docker. Raises: PeerError."""
    environment = make_environment("opensandbox", "opensandbox-server", folder / "environment")
    name, port, key = f"OpenSandbox server {environment.version}", free_port(), secrets.token_hex(16)
    config = folder / "config.toml"
    config.write_text(_CONFIG.format(port=port, key=key, database=folder / "opensandbox.db"))
    command = [environment.program("opensandbox-server"), "--config", str(config)]
    url = f"http://127.0.0.1:{port}"
    process = PeerProcess(command, folder, {})
    try:
        process.until(lambda http: http.get(f"{url}/health").is_success)
        rows = (
            Row(f"{name}: start of the process to the first answer", process.age_s, "s"),
            Row(f"{name}: RSS after the start", rss_mib(process.pids()), "MiB"),
        )
        with http_client() as http:
            answer = http.post(f"{url}/v1/sandboxes", headers={"OPEN-SANDBOX-API-KEY": key}, json=_body(image))
            if answer.is_success:
                http.delete(f"{url}/v1/sandboxes/{answer.json()['id']}", headers={"OPEN-SANDBOX-API-KEY": key})
        yield Section("OpenSandbox's server", rows, (f"{name}: {_outcome(answer)}",))
    finally:
        process.end()


def _outcome(answer: httpx.Response) -> str:
    if answer.is_success:
        return f"a create took {answer.elapsed.total_seconds() * 1000:,.0f} ms to its answer."
    try:
        reason = f"{answer.json()['code']}: {answer.json()['message']}"
    except (json.JSONDecodeError, KeyError, TypeError):
        reason = answer.text
    return f"no sandbox could be created, HTTP {answer.status_code}: {reason[:_LARGEST_REASON].split(': 500 ')[0]}"


def _body(image: str) -> dict[str, object]:
    return {
        "image": {"uri": image},
        "timeout": 600,
        "entrypoint": ["sleep", "600"],
        "resourceLimits": {"cpu": "500m", "memory": "512Mi"},
    }


_CONFIG = """
[server]
host = "127.0.0.1"
port = {port}
api_key = "{key}"

[runtime]
type = "docker"
execd_image = "opensandbox/execd:v1.1.0"

[store]
type = "sqlite"
path = "{database}"

[docker]
network_mode = "bridge"
publish_host = "127.0.0.1"
"""
