"""Signed /files addresses: they let someone without the access token read or write one path, possibly for a time."""

import base64
import hashlib
import time
from collections.abc import Mapping

from sandgate_agent.configuration import is_same_secret
from sandgate_agent.errors import Unauthenticated


def make_signature(path: str, operation: str, user: str, access_token: str, expiration: str | None) -> str:
    """As E2B's SDKs compute it: `operation` is `read` or `write`, `expiration` Unix seconds as the address has them."""
    parts = [path, operation, user, access_token]
    if expiration is not None:
        parts.append(expiration)
    digest = hashlib.sha256(":".join(parts).encode()).digest()
    return "v1_" + base64.b64encode(digest).decode("ascii").rstrip("=")


def check_signature(query: Mapping[str, str], operation: str, access_token: str) -> None:
    """Raises: Unauthenticated; an expired signature is only called so when it is otherwise right."""
    given = query.get("signature")
    if not given:
        raise Unauthenticated("missing signature query parameter")
    expiration = query.get("signature_expiration")
    path, user = query.get("path", ""), query.get("username", "")
    if not is_same_secret(given, make_signature(path, operation, user, access_token, expiration)):
        raise Unauthenticated("invalid signature")
    if expiration is not None and (not expiration.isdecimal() or int(expiration) < time.time()):
        raise Unauthenticated("signature is already expired")
