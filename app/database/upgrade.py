"""Runs the migrations. Apart from `connection`, because nearly every start finds the schema current."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError


def upgrade(connection: Connection, migrations: Path) -> None:
    """To the newest revision. Raises: SQLAlchemyError, also for a revision that the migrations do not know."""
    config = Config()
    config.set_main_option("script_location", str(migrations))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise SQLAlchemyError(f"{error} A newer Sandgate may have been here.") from error
