"""Tool memory"""

import sqlalchemy as sa
from alembic import op

from app.database.tables import Moment

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "remembered_lists",
        sa.Column("team_id", sa.String(32), sa.ForeignKey("teams.id"), primary_key=True),
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("server", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("lists", sa.Text, nullable=False),
        sa.Column("seen_at", Moment, nullable=False, index=True),
    )
