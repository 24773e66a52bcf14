"""Names of images that were fetched with credentials, to be taken away from them"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "template_private_names",
        sa.Column("image", sa.Text, primary_key=True),
        sa.Column("earlier", sa.Text),
    )
