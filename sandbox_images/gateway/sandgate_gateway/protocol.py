"""The words of the Model Context Protocol: revisions, methods, metadata keys, error codes and their HTTP status.

Revision 2026-07-28 ("modern") is stateless: every request carries its own envelope in `params._meta`. Everything up to
2025-11-25 ("legacy") opens a session with `initialize`. Source: modelcontextprotocol.io/specification/<revision>.
"""

from typing import Any, Final, Literal

Era = Literal["legacy", "modern"]

MODERN_VERSION: Final = "2026-07-28"
MODERN_VERSIONS: Final = (MODERN_VERSION,)
LATEST_LEGACY_VERSION: Final = "2025-11-25"
LEGACY_VERSIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
DEFAULT_HTTP_VERSION: Final = "2025-03-26"
"""What a legacy HTTP request without MCP-Protocol-Version speaks (2025-06-18, basic/transports)."""

GATEWAY_INFO: Final[dict[str, Any]] = {"name": "sandgate", "title": "Sandgate", "version": "0.1.0"}

META_PROTOCOL_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
META_CLIENT_CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"
META_CLIENT_INFO: Final = "io.modelcontextprotocol/clientInfo"
META_LOG_LEVEL: Final = "io.modelcontextprotocol/logLevel"
META_SERVER_INFO: Final = "io.modelcontextprotocol/serverInfo"
META_SUBSCRIPTION_ID: Final = "io.modelcontextprotocol/subscriptionId"
ENVELOPE_KEYS: Final = (META_PROTOCOL_VERSION, META_CLIENT_CAPABILITIES, META_CLIENT_INFO, META_LOG_LEVEL)

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
RESOURCE_NOT_FOUND: Final = -32002
"""Legacy only; 2026-07-28 answers INVALID_PARAMS with `data.uri`."""
URL_ELICITATION_REQUIRED: Final = -32042
"""2025-11-25 only."""
HEADER_MISMATCH: Final = -32020
MISSING_CLIENT_CAPABILITY: Final = -32021
UNSUPPORTED_VERSION: Final = -32022

MODERN_HTTP_STATUS: Final = {
    PARSE_ERROR: 400,
    INVALID_REQUEST: 400,
    INVALID_PARAMS: 400,
    HEADER_MISMATCH: 400,
    MISSING_CLIENT_CAPABILITY: 400,
    UNSUPPORTED_VERSION: 400,
    METHOD_NOT_FOUND: 404,
}
"""HTTP status of a JSON-RPC error code at 2026-07-28; 200 for every other code."""

NAME_PARAMETER: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""Method -> the parameter that `Mcp-Name` repeats at 2026-07-28."""

INTERACTIVE_METHODS: Final = frozenset(NAME_PARAMETER)
"""The only methods a modern server may answer with `input_required`."""

CLIENT_REQUESTS: Final = {
    "sampling/createMessage": "sampling",
    "elicitation/create": "elicitation",
    "roots/list": "roots",
}
"""Request a server sends to a client -> the client capability it needs."""

LIST_CHANGED: Final = {
    "notifications/tools/list_changed": "tools",
    "notifications/prompts/list_changed": "prompts",
    "notifications/resources/list_changed": "resources",
}
"""Notification -> the capability whose lists it invalidates."""

CARRIED_EXTENSIONS: Final = frozenset({"io.modelcontextprotocol/ui"})
"""Extensions that need nothing of the gateway but unchanged content; every other one is withheld from both sides."""

LOG_LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""RFC 5424 severities, the most talkative first."""


def log_rank(level: object) -> int:
    """Position of a level in LOG_LEVELS; an unknown one counts as the most severe, so that it is never lost."""
    return LOG_LEVELS.index(level) if isinstance(level, str) and level in LOG_LEVELS else len(LOG_LEVELS) - 1


def carried_capabilities(capabilities: dict[str, Any]) -> dict[str, Any]:
    """The capabilities of one side as the gateway may declare them to the other: without extensions it can't carry."""
    kept = {key: value for key, value in capabilities.items() if key not in ("extensions", "tasks", "experimental")}
    declared = capabilities.get("extensions")
    if isinstance(declared, dict):
        extensions = {key: value for key, value in declared.items() if key in CARRIED_EXTENSIONS}
        if extensions:
            kept["extensions"] = extensions
    return kept
