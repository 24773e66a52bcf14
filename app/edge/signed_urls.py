"""Finds the sandbox that a signed `/files` URL is for when neither host nor headers name one.

The URL's signature is the SHA-256 of its parameters and the sandbox's access token, so the sandbox is the one whose
token reproduces it. Expiry is for the agent to judge.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Iterable
from urllib.parse import parse_qs

from app.edge.directory import Target

_READING = ("GET", "HEAD")


def has_signature(query: bytes) -> bool:
    return b"signature=" in query and "signature" in _parameters(query)


def find_signer(targets: Iterable[Target], method: str, query: bytes) -> Target | None:
    """The sandbox whose token signed this query, or None."""
    parameters = _parameters(query)
    given = parameters.get("signature", "").encode()
    operation = "read" if method in _READING else "write"
    for target in targets:
        expected = signature(
            path=parameters.get("path", ""),
            operation=operation,
            user=parameters.get("username", ""),
            token=target.access_token,
            expiration=parameters.get("signature_expiration"),
        )
        if hmac.compare_digest(expected.encode(), given):
            return target
    return None


def signature(*, path: str, operation: str, user: str, token: str, expiration: str | None) -> str:
    """`v1_` and the unpadded base64 of SHA-256 over `path:operation:user:token[:expiration]`, as E2B's SDKs make it."""
    parts = [path, operation, user, token] + ([expiration] if expiration else [])
    digest = hashlib.sha256(":".join(parts).encode()).digest()
    return "v1_" + b64encode(digest).decode().rstrip("=")


def _parameters(query: bytes) -> dict[str, str]:
    found = parse_qs(query.decode("ascii", "replace"), keep_blank_values=True)
    return {name: values[0] for name, values in found.items()}
