"""Decides, without I/O, which port of which sandbox a request is for.

In this order: the routing headers, the host `<port>-<id>.<domain>`, the path `/sandboxes/<id>/mcp`, a signed `/files`
URL. What is none of these is a request to the API.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from starlette.types import Scope

from app.edge.answers import Refusal, not_found
from app.edge.directory import Directory, Target
from app.edge.signed_urls import find_signer, has_signature

AGENT_PORT = 49983
GATEWAY_PORT = 50005
_PRIVATE_PORTS = frozenset({49984, 50006})
"""The agent's stdio door and the gateway's control: for other parts of the pod and the control plane only."""

_INTERNAL_PATHS = frozenset({b"init", b"freeze", b"unfreeze", b"collapse", b"fsfreeze", b"fsthaw", b"upgrade"})
_PLAIN_PATH = re.compile(rb"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+/?|/")
"""Paths that have one spelling only. All of the agent's are of this kind, so nothing else is passed to it."""

_SANDBOX_ID = re.compile(r"([a-z0-9]+)(?:-[a-z0-9]*)?")
"""With the client id that older SDKs append; only the part before the hyphen counts."""
_HOST_LABEL = re.compile(r"([0-9]+)-([a-z0-9]+(?:-[a-z0-9]*)?)")
_MCP_PATH = re.compile(rb"/sandboxes/([a-z0-9]+)(?:-[a-z0-9]*)?(/mcp(?:/.*)?)")


@dataclass(frozen=True, slots=True)
class Route:
    """A request's way: to `path` (raw, without the query) on `port` of the pod at `address`."""

    target: Target
    address: str
    port: int
    path: bytes


class Router:
    def __init__(self, directory: Directory, *, sandbox_domain: str | None) -> None:
        self._directory = directory
        self._host_suffix = "." + _without_port(sandbox_domain.lower()) if sandbox_domain else None

    def resolve(self, scope: Scope) -> Route | Refusal | None:
        """The way to a sandbox, the answer that takes its place, or None for the API.

        Args: scope: of a `http` or `websocket` connection.
        """
        ids: list[bytes] = []
        ports: list[bytes] = []
        host = b""
        for name, value in scope["headers"]:
            if name == b"e2b-sandbox-id":
                ids.append(value)
            elif name == b"e2b-sandbox-port":
                ports.append(value)
            elif name == b"host":
                host = value
        path: bytes = scope.get("raw_path") or scope["path"].encode()

        if ids and ports:
            return self._by_headers(ids, ports, path)
        host_name = _without_port(host.decode("latin-1").lower()).rstrip(".")
        if (ids or ports) and _needs_headers(host_name):
            missing = "E2b-Sandbox-Port" if ids else "E2b-Sandbox-Id"
            return Refusal(400, f"The header {missing} is missing: both routing headers are needed")
        if self._host_suffix and host_name.endswith(self._host_suffix):
            label = _HOST_LABEL.fullmatch(host_name.removesuffix(self._host_suffix))
            if label:
                return self._to(label[2], label[1], path)
        if path.startswith(b"/sandboxes/"):
            found = _MCP_PATH.fullmatch(path)
            return self._to_port(found[1].decode(), GATEWAY_PORT, found[2]) if found else None
        if path == b"/files" and has_signature(scope["query_string"]):
            target = find_signer(self._directory, scope.get("method", "GET"), scope["query_string"])
            if target is None:
                return Refusal(401, "invalid signature")
            return self._to_port(target.sandbox_id, AGENT_PORT, path)
        return None

    def _by_headers(self, ids: list[bytes], ports: list[bytes], path: bytes) -> Route | Refusal:
        if len(ids) > 1 or len(ports) > 1:
            return Refusal(400, "The headers E2b-Sandbox-Id and E2b-Sandbox-Port may be given once only")
        return self._to(ids[0].decode("latin-1"), ports[0].decode("latin-1"), path)

    def _to(self, sandbox_id: str, port: str, path: bytes) -> Route | Refusal:
        found = _SANDBOX_ID.fullmatch(sandbox_id)
        if not found:
            return Refusal(400, "The sandbox id is not valid: lower-case letters and digits are expected")
        if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
            return Refusal(400, "The sandbox port is not valid: a number from 1 to 65535 is expected", found[1])
        return self._to_port(found[1], int(port), path)

    def _to_port(self, sandbox_id: str, port: int, path: bytes) -> Route | Refusal:
        target = self._directory.find(sandbox_id)
        if target is None or target.address is None:
            return not_found(sandbox_id)
        if port in _PRIVATE_PORTS or (port == AGENT_PORT and not _is_public_agent_path(path)):
            return Refusal(404, "Not found", sandbox_id)
        return Route(target, target.address, port, path)


def _is_public_agent_path(path: bytes) -> bool:
    return _PLAIN_PATH.fullmatch(path) is not None and path.split(b"/")[1].lower() not in _INTERNAL_PATHS


def _needs_headers(host_name: str) -> bool:
    """Whether a host says nothing about the sandbox by itself, as E2B's proxy sees it."""
    if host_name == "localhost" or host_name.startswith("sandbox."):
        return True
    try:
        ipaddress.ip_address(host_name.strip("[]"))
    except ValueError:
        return False
    return True


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
