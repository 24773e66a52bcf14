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


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    id: str
    team_id: str
    kind: Kind
    name: str | None
    """Unique in the team; only a snapshot may be without."""
    public: bool
    created_at: datetime
    updated_at: datetime
    spawn_count: int = 0
    last_spawned_at: datetime | None = None
    sandbox_id: str | None = None
    """What a snapshot was taken of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """How the sandboxes of a build are run; see ResolvedTemplate."""

    user: str = DEFAULT_USER
    workdir: str | None = DEFAULT_WORKDIR
    envs: Mapping[str, str] = field(default_factory=dict, repr=False)
    start_command: str | None = field(default=None, repr=False)
    ready_command: str | None = field(default=None, repr=False)


LogLevel = Literal["debug", "info", "warn", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    at: datetime
    message: str
    level: LogLevel = "info"
    step: str | None = None
    """`base`, `finalize`, or the number of a step, counted from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFailure:
    message: str
    step: str | None = None
    """As in LogLine."""
    log: tuple[LogLine, ...] = ()
    """What the failed step printed last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    id: str
    """A UUID, as the SDKs want it."""
    template_id: str
    status: BuildStatus
    created_at: datetime
    wanted_tags: tuple[str, ...] = ()
    """Tags that the build gets once it is ready."""
    failure: BuildFailure | None = None
    image: str | None = None
    cpus: int | None = None
    memory_mib: int | None = None
    has_gateway: bool = False
    runs: Runs = Runs()
    started_at: datetime | None = None
    """When its steps were sent."""
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    tag: str
    build_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateView:
    """A template as lists show it."""

    template: Template
    build: Build
    """The newest one that is ready, else the newest."""
    builds: tuple[Build, ...]
    """All of them, newest first."""
    namespace: str
    """With which other teams name it."""
