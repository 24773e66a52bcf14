"""Decides, without I/O, which port of which sandbox a request is for.

In this order: the routing headers, the host `<port>-<id>.<domain>`, the path `/sandboxes/<id>/mcp`, a signed `/files`
URL. What is none of these is a request to the API.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass

from starlette.types import Scope

from app.edge.answers import (
    TRAFFIC_TOKEN_HEADER,
    Refusal,
    may_not_resume,
    not_found,
    not_there_yet,
    traffic_token_invalid,
    traffic_token_missing,
)
from app.edge.directory import Directory, Target
from app.edge.signed_urls import find_signer, has_signature

AGENT_PORT = 49983
AGENT_DOOR_PORT = 49984
GATEWAY_PORT = 50005
_PRIVATE_PORTS = frozenset({AGENT_DOOR_PORT, 50006})
"""The agent's stdio door and the gateway's control: for other parts of the pod and the control plane only."""

_INTERNAL_PATHS = frozenset({b"init", b"freeze", b"unfreeze", b"collapse", b"fsfreeze", b"fsthaw", b"upgrade"})
_PLAIN_PATH = re.compile(rb"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+/?|/")
"""Paths that have one spelling only. All of the agent's are of this kind, so nothing else is passed to it."""

_SANDBOX_ID = re.compile(r"([a-z0-9]+)(?:-[a-z0-9]*)?")
"""With the client id that older SDKs append; only the part before the hyphen counts."""
_HOST_LABEL = re.compile(r"([0-9]+)-([a-z0-9]+(?:-[a-z0-9]*)?)")
_TRAFFIC_TOKEN_HEADER = TRAFFIC_TOKEN_HEADER.encode()
_MCP_PATH = re.compile(rb"/sandboxes/([a-z0-9]+)(?:-[a-z0-9]*)?(/mcp(?:/.*)?)")


@dataclass(frozen=True, slots=True)
class Route:
    """A request's way: to `path` (raw, without the query) on `port` of the pod at `address`."""

    target: Target
    address: str
    port: int
    path: bytes

    @property
    def sandbox_id(self) -> str:
        return self.target.sandbox_id


@dataclass(frozen=True, slots=True)
class Asleep:
    """A paused sandbox that this request may resume; the way to it is known once it runs."""

    sandbox_id: str


class Router:
    def __init__(self, directory: Directory, *, sandbox_domain: str | None) -> None:
        self._directory = directory
        self._host_suffix = "." + _without_port(sandbox_domain.lower()) if sandbox_domain else None

    def resolve(self, scope: Scope) -> Route | Asleep | Refusal | None:
        """The way to a sandbox, what has to be done first, the answer that takes its place, or None for the API.

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
            return self._by_headers(ids, ports, path, scope)
        host_name = _without_port(host.decode("latin-1").lower()).rstrip(".")
        if (ids or ports) and _needs_headers(host_name):
            missing = "E2b-Sandbox-Port" if ids else "E2b-Sandbox-Id"
            return Refusal(400, f"The header {missing} is missing: both routing headers are needed")
        if self._host_suffix and host_name.endswith(self._host_suffix):
            label = _HOST_LABEL.fullmatch(host_name.removesuffix(self._host_suffix))
            if label:
                return self._to(label[2], label[1], path, scope)
        if path.startswith(b"/sandboxes/"):
            found = _MCP_PATH.fullmatch(path)
            if found and found[2] == b"/mcp" and scope.get("method") == "PATCH":
                return None  # no method of MCP: the API changes the servers by it
            return self._to_port(found[1].decode(), GATEWAY_PORT, found[2], scope) if found else None
        if path == b"/files" and has_signature(scope["query_string"]):
            target = find_signer(self._directory, scope.get("method", "GET"), scope["query_string"])
            if target is None:
                return not_there_yet() if self._directory.awaited else Refusal(401, "invalid signature")
            return self._to_port(target.sandbox_id, AGENT_PORT, path, scope)
        return None

    def _by_headers(self, ids: list[bytes], ports: list[bytes], path: bytes, scope: Scope) -> Route | Asleep | Refusal:
        if len(ids) > 1 or len(ports) > 1:
            return Refusal(400, "The headers E2b-Sandbox-Id and E2b-Sandbox-Port may be given once only")
        return self._to(ids[0].decode("latin-1"), ports[0].decode("latin-1"), path, scope)

    def _to(self, sandbox_id: str, port: str, path: bytes, scope: Scope) -> Route | Asleep | Refusal:
        found = _SANDBOX_ID.fullmatch(sandbox_id)
        if not found:
            return Refusal(400, "The sandbox id is not valid: lower-case letters and digits are expected")
        if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
            return Refusal(400, "The sandbox port is not valid: a number from 1 to 65535 is expected", found[1])
        return self._to_port(found[1], int(port), path, scope)

    def _to_port(self, sandbox_id: str, port: int, path: bytes, scope: Scope) -> Route | Asleep | Refusal:
        target = self._directory.find(sandbox_id)
        if target is None and sandbox_id in self._directory.awaited:
            return not_there_yet(sandbox_id)
        if target is None or (target.address is None and not target.may_resume):
            return not_found(sandbox_id)
        if port in _PRIVATE_PORTS or (port == AGENT_PORT and not _is_public_agent_path(path)):
            return Refusal(404, "Not found", sandbox_id)
        if port != AGENT_PORT and target.traffic_access_token is not None:
            given = _header(scope, _TRAFFIC_TOKEN_HEADER)
            if not given:
                return traffic_token_missing(sandbox_id)
            if not hmac.compare_digest(given, target.traffic_access_token.encode()):
                return traffic_token_invalid(sandbox_id)
        if target.address is not None:
            return Route(target, target.address, port, path)
        if port == AGENT_PORT and not _knows_agent(target, scope):
            return may_not_resume(sandbox_id)
        return Asleep(sandbox_id)


def _knows_agent(target: Target, scope: Scope) -> bool:
    """Whether a request shows the agent's access token, or a signature made with it.

    The agent checks again, and knows paths that need neither. They are no reason to resume a sandbox.
    """
    given = _header(scope, b"x-access-token")
    if given and hmac.compare_digest(given, target.access_token.encode()):
        return True
    query: bytes = scope["query_string"]
    return has_signature(query) and find_signer([target], scope.get("method", "GET"), query) is not None


def _header(scope: Scope, name: bytes) -> bytes:
    """The first value; empty if there is none."""
    return next((value for given, value in scope["headers"] if given == name), b"")


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
