"""Documents of imported catalogs are encrypted"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    with op.batch_alter_table("catalogs") as catalogs:
        catalogs.add_column(sa.Column("document_encrypted", sa.Text))
        catalogs.alter_column("document", existing_type=sa.LargeBinary, nullable=True)
    # No key is at hand here. What has to be read again is encrypted on that occasion.
    op.execute("UPDATE catalogs SET reader_revision = 0")
