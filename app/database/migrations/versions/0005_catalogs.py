"""Catalogs"""

import sqlalchemy as sa
from alembic import op

from app.database.tables import Moment

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "catalogs",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("title", sa.Text),
        sa.Column("origin", sa.Text),
        sa.Column("loopback_allowed", sa.Boolean, nullable=False),
        sa.Column("format", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("pinned_digest", sa.String(80)),
        sa.Column("overrides", sa.Boolean, nullable=False),
        sa.Column("imported_at", Moment, nullable=False),
        sa.Column("reader_revision", sa.Integer, nullable=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
        sa.Column("manifests", sa.LargeBinary, nullable=False),
        sa.Column("refused", sa.JSON, nullable=False),
    )
