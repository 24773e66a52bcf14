"""Volumes, secrets and events of sandboxes"""

import sqlalchemy as sa
from alembic import op

from app.database.tables import Moment

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "volumes",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("team_id", sa.String(32), sa.ForeignKey("teams.id"), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("token_encrypted", sa.Text, nullable=False),
        sa.Index("ix_volumes_team_id_name", "team_id", "name", unique=True),
    )
    op.create_table(
        "secrets",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("team_id", sa.String(32), sa.ForeignKey("teams.id"), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("value_encrypted", sa.Text, nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("updated_at", Moment, nullable=False),
        sa.Index("ix_secrets_team_id_name", "team_id", "name", unique=True),
    )
    op.create_table(
        "sandbox_events",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("sandbox_id", sa.String(32), nullable=False),
        sa.Column("at", Moment, nullable=False),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("fields", sa.JSON, nullable=False),
        sa.Index("ix_sandbox_events_sandbox_id_at", "sandbox_id", "at"),
        sa.Index("ix_sandbox_events_at", "at"),
    )
