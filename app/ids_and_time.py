"""How ids look and how time is written. Knows nothing else."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


def new_sandbox_id() -> str:
    """`i` and 19 characters of lower-case base32: fits a DNS label with `<port>-` in front (95 random bits)."""
    return "i" + _random(19)


def new_id(prefix: str) -> str:
    """`<prefix>_` and 20 characters of lower-case base32, for everything that is not a sandbox or a pod."""
    return f"{prefix}_{_random(20)}"


def new_pod_id() -> str:
    """`p` and 19 characters of lower-case base32: valid in container, network and Kubernetes names."""
    return "p" + _random(19)


def new_template_id() -> str:
    """`t` and 19 characters of lower-case base32, for templates and snapshots: also valid as the name of one."""
    return "t" + _random(19)


def new_token() -> str:
    """A secret of 256 bits, 64 hexadecimal digits."""
    return secrets.token_hex(32)


def _random(length: int) -> str:
    return "".join(secrets.choice(_BASE32) for _ in range(length))


def utc_now() -> datetime:
    return datetime.now(UTC)


def rfc3339(moment: datetime) -> str:
    """An aware moment as RFC 3339 in UTC with microseconds and `Z`; the same moment always gives the same text."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
