"""First tables"""

import sqlalchemy as sa
from alembic import op

from app.database.tables import Moment

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "teams",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("team_id", sa.String(32), sa.ForeignKey("teams.id"), nullable=False, index=True),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("key_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("hint", sa.String(16), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
    )
    op.create_table(
        "sandboxes",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("team_id", sa.String(32), sa.ForeignKey("teams.id"), nullable=False, index=True),
        sa.Column("template", sa.String(120), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("target", sa.String(16), nullable=False),
        sa.Column("failure", sa.Text),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("started_at", Moment, nullable=False),
        sa.Column("ends_at", Moment, nullable=False),
        sa.Column("stopped_at", Moment),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("egress", sa.Boolean),
        sa.Column("has_gateway", sa.Boolean, nullable=False),
        sa.Column("cpus", sa.Integer, nullable=False),
        sa.Column("memory_mib", sa.Integer, nullable=False),
        sa.Column("secrets_encrypted", sa.Text),
        sa.Index("ix_sandboxes_status_target", "status", "target"),
        sa.Index("ix_sandboxes_target_ends_at", "target", "ends_at"),
    )
    op.create_table(
        "pods",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("sandbox_id", sa.String(32), sa.ForeignKey("sandboxes.id"), index=True),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("secrets_encrypted", sa.Text, nullable=False),
    )
