"""Connection, tables, migrations."""

from app.database.connection import Database

__all__ = ["Database"]
