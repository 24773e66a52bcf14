"""Requests on their way to a server, in the server's era. Pure."""

from typing import Any

from sandgate_gateway.callers import Caller
from sandgate_gateway.protocol import (
    ENVELOPE_KEYS,
    GATEWAY_INFO,
    LATEST_LEGACY_VERSION,
    META_CLIENT_CAPABILITIES,
    META_CLIENT_INFO,
    META_LOG_LEVEL,
    META_PROTOCOL_VERSION,
    Era,
    carried_capabilities,
)

DEFAULT_LEGACY_LOG_LEVEL = "info"
"""A legacy client that never set a level expects the server's messages; a modern server sends none unasked."""

SHARED_CAPABILITIES: dict[str, Any] = {
    "sampling": {"tools": {}, "context": {}},
    "elicitation": {"form": {}, "url": {}},
    "roots": {"listChanged": True},
}
"""Declared to a legacy server that all clients share: what any of them may be able to do. A request that no client in
progress can answer is refused with an error."""


def outgoing_params(
    era: Era, version: str, params: dict[str, Any] | None, caller: Caller, token: int | None
) -> dict[str, Any]:
    """A copy of params for a server of this era. `token` replaces the client's progress token, None drops it."""
    copy = dict(params) if params else {}
    inherited = copy.pop("_meta", None)
    meta: dict[str, Any] = {}
    if isinstance(inherited, dict):
        meta = {key: value for key, value in inherited.items() if key not in ENVELOPE_KEYS and key != "progressToken"}
    if token is not None:
        meta["progressToken"] = token
    if era == "modern":
        meta[META_PROTOCOL_VERSION] = version
        meta[META_CLIENT_CAPABILITIES] = carried_capabilities(caller.capabilities)
        meta[META_CLIENT_INFO] = GATEWAY_INFO
        level = caller.log_level
        if level is None and caller.era == "legacy" and caller.key != "gateway":
            level = DEFAULT_LEGACY_LOG_LEVEL
        if level is not None:
            meta[META_LOG_LEVEL] = level
    if meta:
        copy["_meta"] = meta
    return copy


def initialize_params(capabilities: dict[str, Any]) -> dict[str, Any]:
    return {
        "protocolVersion": LATEST_LEGACY_VERSION,
        "capabilities": carried_capabilities(capabilities),
        "clientInfo": GATEWAY_INFO,
    }
