"""Sandbox lifecycle"""

import sqlalchemy as sa
from alembic import op

from app.database.tables import Moment

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # What ran so far was made from images of the earlier version, whose agents do not know the calls of this one.
    op.execute("UPDATE sandboxes SET target = 'stopped' WHERE target = 'running'")
    with op.batch_alter_table("sandboxes") as sandboxes:
        sandboxes.add_column(sa.Column("template_id", sa.String(64), nullable=False, server_default="base"))
        sandboxes.alter_column("template", type_=sa.String(200), existing_type=sa.String(120), existing_nullable=False)
        sandboxes.add_column(sa.Column("timeout_s", sa.Integer, nullable=False, server_default="300"))
        sandboxes.add_column(sa.Column("lifecycle", sa.JSON, nullable=False, server_default="{}"))
        sandboxes.add_column(sa.Column("pause_mode", sa.String(16)))
        sandboxes.drop_column("egress")
        sandboxes.add_column(sa.Column("egress", sa.Boolean, nullable=False, server_default=sa.true()))
        sandboxes.add_column(sa.Column("network", sa.JSON, nullable=False, server_default="{}"))
        sandboxes.add_column(sa.Column("volume_mounts", sa.JSON, nullable=False, server_default="[]"))
        sandboxes.add_column(sa.Column("fork_image", sa.String(200)))
        sandboxes.add_column(sa.Column("idempotency_key", sa.String(255)))
        sandboxes.add_column(sa.Column("request_digest", sa.String(64)))
    op.create_index("ix_sandboxes_template_id", "sandboxes", ["template_id"])
    op.create_index("ix_sandboxes_team_id_started_at", "sandboxes", ["team_id", "started_at"])
    op.create_index("ix_sandboxes_team_id_idempotency_key", "sandboxes", ["team_id", "idempotency_key"], unique=True)
    with op.batch_alter_table("pods") as pods:
        pods.add_column(sa.Column("recipe", sa.String(64)))
        pods.add_column(sa.Column("ready_at", Moment))
        pods.add_column(sa.Column("address", sa.String(64)))
    op.create_index("ix_pods_recipe_sandbox_id_ready_at", "pods", ["recipe", "sandbox_id", "ready_at"])
