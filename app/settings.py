"""What an operator may set, by environment variables that begin with `SANDGATE_`. Read where the parts are built."""

from __future__ import annotations

import json
import os
import ssl
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.errors import SandgateError

_PREFIX = "SANDGATE_"

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: `catalog/` and `sandbox_images/` lie beside the package."""


class SettingsError(SandgateError):
    """A setting is unknown or has a value that cannot be used. Names the variable; the value may be a secret."""


def host_ca_bundle() -> Path | None:
    """The bundle OpenSSL uses on this host: `SSL_CERT_FILE`, else the compiled-in default, if the file exists."""
    found = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    return Path(found) if Path(found).is_file() else None


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_ignore_empty=True)

    home: Path = Path.home() / ".sandgate"
    """State: database, encryption key, `api-key`, local CA."""
    host: str = "127.0.0.1"
    port: int = Field(8080, gt=0, lt=65536)
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
    tls_port: int | None = Field(None, gt=0, lt=65536)
    """Port of the TLS listener for `sandbox_domain`; no listener unless set."""
    tls_certificate: Path | None = None
    """PEM chain for `*.<sandbox_domain>`; default is one from the local CA."""
    tls_key: Path | None = None
    edge_workers: int = Field(0, ge=0, le=64)
    """Processes that carry sandbox traffic beside each other on `port`; 0: the server's own does."""
    pool: Annotated[dict[str, Annotated[int, Field(ge=0, le=100)]], NoDecode] = {"base": 2, "mcp-gateway": 2}
    """`<template>=<number>` with commas: pods of these templates that wait ready, so that a create takes no start."""
    egress_allow: Annotated[list[str], NoDecode] = []
    """`<IPv4 address or network>:<port>` with commas: TCP ports here that sandboxes may reach in spite of the guard."""
    github_url: str = "https://github.com"
    """Where custom servers `github/<owner>/<repo>` are cloned from."""
    memory_mib: int = Field(1024, gt=0)
    """Memory of a workspace."""
    cpus: float = Field(2.0, gt=0)
    pids: int = Field(1024, gt=0)
    """Most processes and threads in one container."""
    server_start_timeout_s: float = Field(30.0, gt=0)
    """How long an MCP server may take to answer `initialize`, unless its catalog entry says more."""

    image_aliases: Annotated[dict[str, str], NoDecode] = {}
    """`<image>=<image>` with commas, or a JSON object: what templates name -> the image to use instead."""
    upload_limit_mib: int = Field(2048, gt=0)
    """Largest archive of files for one COPY of a template."""
    build_timeout_s: float = Field(3600.0, gt=0)
    """How long the build of a template may take."""

    @field_validator("image_aliases", mode="before")
    @classmethod
    def _aliases(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("{"):
            return json.loads(value)
        pairs = [entry.partition("=") for entry in value.split(",") if entry.strip()]
        if not all(name.strip() and image.strip() for name, _, image in pairs):
            raise ValueError("write <image>=<image>, with commas between them, or a JSON object")
        return {name.strip(): image.strip() for name, _, image in pairs}

    @field_validator("pool", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        return dict(_pair(entry) for entry in value.split(",") if entry.strip()) if isinstance(value, str) else value

    @field_validator("egress_allow", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [entry.strip() for entry in value.split(",") if entry.strip()] if isinstance(value, str) else value


def _pair(entry: str) -> tuple[str, str]:
    name, separator, number = entry.partition("=")
    if not separator:
        raise ValueError("write <template>=<number>, with commas between them, as in base=2,mcp-gateway=2")
    return name.strip(), number.strip()


def read_settings() -> Settings:
    """Of the process's environment. Raises: SettingsError."""
    known = [_PREFIX + name.upper() for name in Settings.model_fields]
    # A setting that is written wrongly and ignored may be one that was meant to shut something.
    for variable in os.environ:
        if variable.upper().startswith(_PREFIX) and variable.upper() not in known:
            nearest = get_close_matches(variable.upper(), known, n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            raise SettingsError(f"There is no setting {variable}.{hint} docs/operations.md lists all of them.")
    try:
        return Settings()
    except ValidationError as error:
        found = [f"{_PREFIX}{str(problem['loc'][0]).upper()}: {problem['msg']}" for problem in error.errors()]
        raise SettingsError("; ".join(found)) from None
