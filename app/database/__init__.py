"""Connection, tables, migrations."""

from app.database.connection import Database, DatabaseUnusableError

__all__ = ["Database", "DatabaseUnusableError"]
