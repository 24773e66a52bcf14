"""Reading a server's first answer: which era, which version. Pure."""

from typing import Any

from sandgate_gateway.jsonrpc import Result, RpcError, is_writable
from sandgate_gateway.protocol import (
    INTERNAL_ERROR,
    LEGACY_VERSIONS,
    MISSING_CLIENT_CAPABILITY,
    MODERN_VERSIONS,
    UNSUPPORTED_VERSION,
)


def modern_version(result: Result) -> str | None:
    """The newest revision in the answer to `server/discover` that this gateway speaks; None if there is none."""
    supported = result.value.get("supportedVersions") if isinstance(result.value, dict) else None
    if not isinstance(supported, list):
        return None
    return next((version for version in MODERN_VERSIONS if version in supported), None)


def offered_version(error: RpcError) -> str | None:
    """The newest modern revision we speak that a version refusal names; None if it names none, or is none."""
    supported = error.data.get("supported") if isinstance(error.data, dict) else None
    if error.code != UNSUPPORTED_VERSION or not isinstance(supported, list):
        return None
    return next((version for version in MODERN_VERSIONS if version in supported), None)


def is_modern_refusal(error: RpcError) -> bool:
    """Whether only a server of the modern era answers the probe like this, so that `initialize` would be in vain.

    A version refusal that names a legacy version is an invitation to `initialize`.
    """
    if error.code == UNSUPPORTED_VERSION:
        supported = error.data.get("supported") if isinstance(error.data, dict) else None
        return not (isinstance(supported, list) and any(version in LEGACY_VERSIONS for version in supported))
    return error.code == MISSING_CLIENT_CAPABILITY


def declared(value: Any) -> tuple[dict[str, Any], str]:
    """Capabilities and instructions of an answer to `server/discover` or `initialize`; empty where they are not what
    they must be, or can't be passed on."""
    value = value if isinstance(value, dict) else {}
    capabilities, instructions = value.get("capabilities"), value.get("instructions")
    if not (isinstance(capabilities, dict) and is_writable(capabilities)):
        capabilities = {}
    return capabilities, instructions if isinstance(instructions, str) else ""


def accepted_legacy_version(value: Any) -> str:
    """The version a legacy server settled on in its answer to `initialize`. Raises: RpcError if it is none we speak."""
    version = value.get("protocolVersion") if isinstance(value, dict) else None
    if version not in LEGACY_VERSIONS:
        raise RpcError(INTERNAL_ERROR, f"answered initialize with the unknown protocol version {version!r}")
    return str(version)
