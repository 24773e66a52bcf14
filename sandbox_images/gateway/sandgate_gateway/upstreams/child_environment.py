"""What a server started by the gateway gets: a uid and a home of its own, and an environment without the gateway's."""

import os
from collections.abc import Mapping
from pathlib import Path

from sandgate_gateway.upstreams.stdio import Identity

FIRST_UID = 20_000

_INHERITED = (
    "PATH",
    "LANG",
    "TZ",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "UV_NATIVE_TLS",
    "UV_SYSTEM_CERTS",
)
"""Variables a program needs to run and to trust the operator's certificate authorities. None of them is a secret."""


def child_identity(number: int) -> Identity | None:
    """The uid and gid of the n-th server; None where the gateway may not change them."""
    return Identity(FIRST_UID + number, FIRST_UID + number) if os.geteuid() == 0 else None


def child_environment(home: Path, env: Mapping[str, str]) -> dict[str, str]:
    base = {name: value for name in _INHERITED if (value := os.environ.get(name)) is not None}
    base.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
    base.setdefault("LANG", "C.UTF-8")
    return {**base, "HOME": str(home), **env}


def prepare_home(home: Path, identity: Identity | None) -> None:
    """Safe to repeat. Raises: OSError."""
    # Root enters the directory before it takes on the server's uid, and it may not ignore permissions (no
    # CAP_DAC_OVERRIDE); so the directory stays in root's group.
    if not home.exists():
        home.mkdir(parents=True)
        home.chmod(0o750)
    if identity is not None:
        os.chown(home, identity.uid, -1)
