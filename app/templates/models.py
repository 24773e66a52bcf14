"""The values of the template room. Plain and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

BASE_TEMPLATE = "base"
GATEWAY_TEMPLATE = "mcp-gateway"
BUILT_IN = (BASE_TEMPLATE, GATEWAY_TEMPLATE)

DEFAULT_TAG = "default"
DEFAULT_USER = "user"
DEFAULT_WORKDIR = "/home/user"

Kind = Literal["built-in", "template", "snapshot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedTemplate:
    """What a sandbox is started from."""

    template_id: str
    build_id: str
    name: str
    """What callers see as the sandbox's template: the name if there is one, else the id."""
    image: str | None
    """None: the workspace image that Sandgate brings along."""
    has_gateway: bool
    user: str | None
    """Who commands run as unless they say otherwise; None: `user`."""
    workdir: str | None
    """Where commands run unless they say otherwise; None: the user's home."""
    envs: Mapping[str, str] = field(repr=False)
    """Under the sandbox's own, which win."""
    start_command: str | None
    """Run as `user` in `workdir` when a sandbox starts, and left running."""
    ready_command: str | None
    """Retried until it exits with 0; only then is the sandbox ready."""
    cpus: int | None
    """None: as the server is set."""
    memory_mib: int | None
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    snapshot_id: str
    """Usable as a template id."""
    names: tuple[str, ...]
    sandbox_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPage:
    snapshots: tuple[Snapshot, ...]
    cursor: str | None
    """Where the next page begins; None after the last one."""


class BuildStatus(StrEnum):
    WAITING = "waiting"
    """Requested; its steps have not been sent yet, or it waits for its turn."""
    BUILDING = "building"
    READY = "ready"
    ERROR = "error"
