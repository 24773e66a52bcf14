"""Rehearsed lists"""

import sqlalchemy as sa
from alembic import op

from app.database.tables import Moment

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "rehearsed_lists",
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("server", sa.String(128), nullable=False, index=True),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("lists", sa.Text, nullable=False),
        sa.Column("seen_at", Moment, nullable=False),
    )
