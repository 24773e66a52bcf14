"""Templates"""

import sqlalchemy as sa
from alembic import op

from app.database.tables import Moment

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "templates",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("team_id", sa.String(32), sa.ForeignKey("teams.id"), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(128)),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("sandbox_id", sa.String(32), index=True),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("updated_at", Moment, nullable=False),
        sa.Column("spawn_count", sa.Integer, nullable=False),
        sa.Column("last_spawned_at", Moment),
        sa.Index("ix_templates_team_id_name", "team_id", "name", unique=True),
    )
    op.create_table(
        "template_builds",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("template_id", sa.String(32), sa.ForeignKey("templates.id"), nullable=False, index=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("failure", sa.JSON),
        sa.Column("wanted_tags", sa.JSON, nullable=False),
        sa.Column("image", sa.String(255)),
        sa.Column("cpus", sa.Integer),
        sa.Column("memory_mib", sa.Integer),
        sa.Column("has_gateway", sa.Boolean, nullable=False),
        sa.Column("runs_encrypted", sa.Text),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("started_at", Moment),
        sa.Column("finished_at", Moment),
        sa.Index("ix_template_builds_status_started_at", "status", "started_at"),
    )
    op.create_table(
        "template_tags",
        sa.Column("template_id", sa.String(32), sa.ForeignKey("templates.id"), primary_key=True),
        sa.Column("tag", sa.String(128), primary_key=True),
        sa.Column("build_id", sa.String(36), sa.ForeignKey("template_builds.id"), nullable=False, index=True),
        sa.Column("created_at", Moment, nullable=False),
    )
    op.create_table(
        "template_build_logs",
        sa.Column("build_id", sa.String(36), sa.ForeignKey("template_builds.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("at", Moment, nullable=False),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("step", sa.String(16)),
        sa.Column("message", sa.Text, nullable=False),
    )
    op.create_table(
        "template_layers",
        sa.Column("image", sa.String(255), primary_key=True),
        sa.Column("used_at", Moment, nullable=False, index=True),
    )
