"""What an operator may set, by environment variables that begin with `SANDGATE_`. Read where the parts are built."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: `catalog/` and `sandbox_images/` lie beside the package."""


def host_ca_bundle() -> Path | None:
    """The bundle OpenSSL uses on this host: `SSL_CERT_FILE`, else the compiled-in default, if the file exists."""
    found = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    return Path(found) if Path(found).is_file() else None


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SANDGATE_", env_ignore_empty=True)

    home: Path = Path.home() / ".sandgate"
    """State: database, encryption key, `api-key`, local CA."""
    host: str = "127.0.0.1"
    port: int = 8080
    public_url: str | None = None
    """What clients see in `mcp.url`; default `http://<host>:<port>`."""
    database_url: str | None = None
    """SQLAlchemy URL; default is SQLite in `home`. Postgres: `postgresql+asyncpg://…`."""
    base_image: str = "debian:trixie-slim"
    """What the sandbox base image starts from; made by debootstrap where it cannot be had."""
    ca_bundle: Path | None = Field(default_factory=host_ca_bundle)
    """Certificates trusted by image builds and inside sandboxes."""
    runtime: str | None = None
    """OCI runtime for pods, as known to the engine (`runsc`, `kata`); default is the engine's."""
    sandbox_domain: str | None = None
    """Domain under which `<port>-<id>.<domain>` reaches a sandbox, port included if not 443; returned as `domain`."""
    tls_port: int | None = None
    """Port of the TLS listener for `sandbox_domain`; no listener unless set."""
    tls_certificate: Path | None = None
    """PEM chain for `*.<sandbox_domain>`; default is one from the local CA."""
    tls_key: Path | None = None
    egress_allow: Annotated[list[str], NoDecode] = []
    """`<IPv4 address or network>:<port>` with commas: TCP ports here that sandboxes may reach in spite of the guard."""
    github_url: str = "https://github.com"
    """Where custom servers `github/<owner>/<repo>` are cloned from."""
    memory_mib: int = 1024
    """Memory of a workspace."""
    cpus: float = 2.0
    pids: int = 1024
    """Most processes and threads in one container."""
    server_start_timeout_s: float = 30.0
    """How long an MCP server may take to answer `initialize`, unless its catalog entry says more."""

    @field_validator("egress_allow", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [entry.strip() for entry in value.split(",") if entry.strip()] if isinstance(value, str) else value
