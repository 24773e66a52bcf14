"""Request and response heads on their way through: what is passed on as it came, and what belongs to one hop only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from starlette.types import Scope

from app.edge.answers import TRAFFIC_TOKEN_HEADER
from app.edge.connection import ResponseHead
from app.edge.routing import AGENT_PORT, Route

Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
"""RFC 9110, section 7.6.1."""
NOT_FOR_SERVICES = frozenset({TRAFFIC_TOKEN_HEADER.encode()})
"""A credential that the edge itself asked for."""
_OWN_HOP = HOP_BY_HOP | NOT_FOR_SERVICES | {b"content-length", b"expect"}
"""The edge frames the body itself, and its own server answers `Expect: 100-continue`."""
_KEPT = frozenset({b"host", b"content-length"})
"""What a `Connection` header cannot have removed."""


class Body(Enum):
    """How a request's body is framed."""

    NONE = auto()
    LENGTH = auto()
    CHUNKED = auto()


class BadHeadError(Exception):
    """The request head cannot be passed on without changing its meaning."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    data: bytes
    body: Body


def make_request_head(scope: Scope, route: Route) -> RequestHead:
    """The head for the pod. Raises: BadHeadError."""
    query: bytes = scope["query_string"]
    target = b"%b?%b" % (route.path, query) if query else route.path
    lines = [b"%b %b HTTP/1.1" % (scope["method"].encode("latin-1"), target)]
    dropped = _OWN_HOP | named_by_connection(scope["headers"])
    lengths: set[bytes] = set()
    chunked = has_host = False
    host = masked_host(route)
    if host is not None:
        dropped |= {b"host"}
        has_host = True
        lines.append(b"host: " + host)
    for name, value in scope["headers"]:
        if name == b"content-length":
            lengths.add(value)
        elif name == b"transfer-encoding":
            if chunked or value.strip().lower() != b"chunked":
                raise BadHeadError("Of transfer codings only chunked is understood")
            chunked = True
        if name not in dropped:
            lines.append(name + b": " + value)
            has_host = has_host or name == b"host"
    if not has_host:
        lines.append(b"host: localhost:%d" % route.port)
    body = Body.NONE
    if chunked:
        body = Body.CHUNKED
        lines.append(b"transfer-encoding: chunked")
    elif lengths:
        length = lengths.pop()
        if lengths or not length.isdigit():
            raise BadHeadError("Content-Length is not one number")
        lines.append(b"content-length: " + length)
        body = Body.LENGTH if int(length) else Body.NONE
    data = b"\r\n".join(lines) + b"\r\n\r\n"
    if data.count(b"\n") != len(lines) + 1 or data.count(b"\r") != len(lines) + 1 or b"\0" in data:
        raise BadHeadError("A header holds a line break")
    return RequestHead(data, body)


def masked_host(route: Route) -> bytes | None:
    """What the service sees as `Host` instead of what the client sent; None if nothing is to be masked."""
    mask = route.target.mask_request_host
    if mask is None or route.port == AGENT_PORT:
        return None
    return mask.replace("${PORT}", str(route.port)).encode("latin-1", "replace")


def make_response_headers(head: ResponseHead) -> Headers:
    """The headers for the client, in the pod's order, duplicates included."""
    dropped = HOP_BY_HOP | named_by_connection((name.lower(), value) for name, value in head.headers)
    if head.status in (204, 304):
        # Such an answer has no body, so a length in it (allowed in a 304) only misleads the server's own framing.
        dropped |= {b"content-length"}
    return [(name, value) for name, value in head.headers if name.lower() not in dropped]


def named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The further hop-by-hop headers that `Connection` names, lower-case."""
    named = [token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")]
    return frozenset(named) - _KEPT
