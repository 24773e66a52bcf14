"""Deleted volumes that the engine may still hold"""

import sqlalchemy as sa
from alembic import op

from app.database.tables import Moment

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_table(
        "removed_volumes",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("removed_at", Moment, nullable=False),
    )
