"""The tables. Times are aware UTC; columns ending in `_encrypted` hold tokens of `app.vault`."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)


class Moment(TypeDecorator[datetime]):
    """An aware UTC datetime, microseconds kept. SQLite has no time zones, so they are put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

installations = Table(
    "installations",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", String(32), nullable=False),
)
"""One row: whose the database is."""

teams = Table(
    "teams",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(120), nullable=False),
    Column("created_at", Moment, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("team_id", String(32), ForeignKey("teams.id"), nullable=False, index=True),
    Column("name", String(120), nullable=False),
    Column("key_hash", String(64), nullable=False, unique=True),
    Column("hint", String(16), nullable=False),
    Column("created_at", Moment, nullable=False),
)

volumes = Table(
    "volumes",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("team_id", String(32), ForeignKey("teams.id"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("token_encrypted", Text, nullable=False),
    Index(None, "team_id", "name", unique=True),
)
"""The engine's volume has the id as its name. `token_encrypted` is what lets somebody at the content."""

removed_volumes = Table(
    "removed_volumes",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("removed_at", Moment, nullable=False),
)
"""Volumes that were deleted, for as long as the engine may still hold them."""

secrets = Table(
    "secrets",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("team_id", String(32), ForeignKey("teams.id"), nullable=False),
    Column("name", String(256), nullable=False),
    Column("version", Integer, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("value_encrypted", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Index(None, "team_id", "name", unique=True),
)

sandbox_events = Table(
    "sandbox_events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("sandbox_id", String(32), nullable=False),
    Column("at", Moment, nullable=False),
    Column("level", String(8), nullable=False),
    Column("message", Text, nullable=False),
    Column("fields", JSON, nullable=False),
    Index(None, "sandbox_id", "at"),
    Index(None, "at"),
)
"""What became of sandboxes, for their logs. No foreign key: rows are written late and go by age."""

sandboxes = Table(
    "sandboxes",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("team_id", String(32), ForeignKey("teams.id"), nullable=False, index=True),
    Column("template_id", String(64), nullable=False, index=True),
    Column("template", String(200), nullable=False),
    Column("status", String(16), nullable=False),
    Column("target", String(16), nullable=False),
    Column("failure", Text),
    Column("created_at", Moment, nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("ends_at", Moment, nullable=False),
    Column("stopped_at", Moment),
    Column("timeout_s", Integer, nullable=False),
    Column("lifecycle", JSON, nullable=False),
    Column("pause_mode", String(16)),
    Column("metadata", JSON, nullable=False),
    Column("egress", Boolean, nullable=False),
    Column("network", JSON, nullable=False),
    Column("volume_mounts", JSON, nullable=False),
    Column("fork_image", String(200)),
    Column("has_gateway", Boolean, nullable=False),
    Column("cpus", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("secrets_encrypted", Text),
    Column("idempotency_key", String(255)),
    Column("request_digest", String(64)),
    Index(None, "status", "target"),
    Index(None, "target", "ends_at"),
    Index(None, "team_id", "started_at"),
    Index(None, "team_id", "idempotency_key", unique=True),
)
"""`status` is where the sandbox is, `target` where it should be; only `transitions` moves `status` after the insert.
`secrets_encrypted` (access token, environment, MCP tokens, the caller's MCP map, the template as it was resolved) is
emptied when the sandbox stops. `request_digest` tells whether a create that repeats an idempotency key is the same."""

pods = Table(
    "pods",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("sandbox_id", String(32), ForeignKey("sandboxes.id"), index=True),
    Column("created_at", Moment, nullable=False),
    Column("secrets_encrypted", Text, nullable=False),
    Column("recipe", String(64)),
    Column("ready_at", Moment),
    Column("address", String(64)),
    Index(None, "recipe", "sandbox_id", "ready_at"),
)
"""A pod is recorded before the engine hears of it and deleted once the engine has none of it left, so that nothing can
run that no row knows. `secrets_encrypted` holds its control tokens. One with a `recipe` and no sandbox waits warm: it
can be claimed from `ready_at` on, and claiming is setting `sandbox_id`, which happens once and is never undone."""

templates = Table(
    "templates",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("team_id", String(32), ForeignKey("teams.id"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("name", String(128)),
    Column("public", Boolean, nullable=False),
    Column("sandbox_id", String(32), index=True),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("spawn_count", Integer, nullable=False),
    Column("last_spawned_at", Moment),
    Index(None, "team_id", "name", unique=True),
)
"""`kind` is `template` or `snapshot`; a snapshot may be without a name, and `sandbox_id` is what it was taken of."""

template_builds = Table(
    "template_builds",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("template_id", String(32), ForeignKey("templates.id"), nullable=False, index=True),
    Column("status", String(16), nullable=False),
    Column("failure", JSON),
    Column("wanted_tags", JSON, nullable=False),
    Column("image", String(255)),
    Column("cpus", Integer),
    Column("memory_mib", Integer),
    Column("has_gateway", Boolean, nullable=False),
    Column("runs_encrypted", Text),
    Column("created_at", Moment, nullable=False),
    Column("started_at", Moment),
    Column("finished_at", Moment),
    Index(None, "status", "started_at"),
)
"""`runs_encrypted` says how a sandbox of the build is run (user, directory, environment, start and ready command). No
`image` means the workspace image that Sandgate brings along. A build gets its tags when it is ready."""

template_tags = Table(
    "template_tags",
    metadata,
    Column("template_id", String(32), ForeignKey("templates.id"), primary_key=True),
    Column("tag", String(128), primary_key=True),
    Column("build_id", String(36), ForeignKey("template_builds.id"), nullable=False, index=True),
    Column("created_at", Moment, nullable=False),
)

template_build_logs = Table(
    "template_build_logs",
    metadata,
    Column("build_id", String(36), ForeignKey("template_builds.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("at", Moment, nullable=False),
    Column("level", String(8), nullable=False),
    Column("step", String(16)),
    Column("message", Text, nullable=False),
)

template_layers = Table(
    "template_layers",
    metadata,
    Column("image", String(255), primary_key=True),
    Column("used_at", Moment, nullable=False, index=True),
)
"""Images that a later build may begin from, and when one last did."""

template_private_names = Table(
    "template_private_names",
    metadata,
    Column("image", Text, primary_key=True),
    Column("earlier", Text),
)
"""Names that images have on the engine while they are fetched with credentials: written before the pull, deleted once
the name is taken away again. What had it before gets it back, and is named `earlier` meanwhile."""

catalogs = Table(
    "catalogs",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("title", Text),
    Column("origin", Text),
    Column("loopback_allowed", Boolean, nullable=False),
    Column("format", String(32), nullable=False),
    Column("digest", String(80), nullable=False),
    Column("pinned_digest", String(80)),
    Column("overrides", Boolean, nullable=False),
    Column("imported_at", Moment, nullable=False),
    Column("reader_revision", Integer, nullable=False),
    Column("document_encrypted", Text),
    Column("document", LargeBinary),
    Column("manifests", LargeBinary, nullable=False),
    Column("refused", JSON, nullable=False),
)
"""Catalogs that were imported, in the order of `position`. `document_encrypted` is what was read, as the configuration
of a client holds credentials, and `manifests` what it came to under `reader_revision` (both compressed), so that a
start parses no YAML. `document` is what an earlier version kept in clear, until it is next read."""

remembered_lists = Table(
    "remembered_lists",
    metadata,
    Column("team_id", String(32), ForeignKey("teams.id"), primary_key=True),
    Column("fingerprint", String(64), primary_key=True),
    Column("server", String(128), nullable=False),
    Column("digest", String(80), nullable=False),
    Column("lists", Text, nullable=False),
    Column("seen_at", Moment, nullable=False, index=True),
)
"""What an MCP server listed when it was last started: `lists` is the gateway's answer as it came, JSON. By team,
because it may depend on whose credentials the server has; `fingerprint` is the catalog's (`list_fingerprint`)."""

rehearsed_lists = Table(
    "rehearsed_lists",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("server", String(128), nullable=False, index=True),
    Column("digest", String(80), nullable=False),
    Column("lists", Text, nullable=False),
    Column("seen_at", Moment, nullable=False),
)
"""What a server of the catalog listed when it was tried with made-up options, for any team. `fingerprint` is that of
`app.catalog.rehearsals`, `server` the catalog name; each trial of a server replaces what the last one showed."""
