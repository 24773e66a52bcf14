"""Connection, tables, migrations."""

from app.database.connection import Database, DatabaseUnusableError
from app.database.ownership import claim_database

__all__ = ["Database", "DatabaseUnusableError", "claim_database"]
