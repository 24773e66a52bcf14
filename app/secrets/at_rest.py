"""Everything that is stored encrypted, in whichever table: whether it can be read, and putting it under a new key."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Column, Table, and_, select, update

from app.database import Database
from app.database.tables import metadata
from app.vault import Vault


async def check_stored_secrets(database: Database, vault: Vault) -> None:
    """Raises: VaultError if something stored was encrypted with a key that the vault does not have."""
    async with database.transaction() as connection:
        for _, column in _encrypted_columns():
            for token in (await connection.execute(select(column).where(column.is_not(None)))).scalars():
                vault.decrypt(token)


async def renew_stored_secrets(database: Database, vault: Vault) -> int:
    """Encrypt everything stored anew with the vault's first key, or nothing; the number of values."""
    count = 0
    async with database.transaction() as connection:
        for table, column in _encrypted_columns():
            keys = list(table.primary_key.columns)
            rows = (await connection.execute(select(column, *keys).where(column.is_not(None)))).all()
            for token, *key in rows:
                this_row = and_(*(part == value for part, value in zip(keys, key, strict=True)))
                await connection.execute(update(table).where(this_row).values({column.name: vault.renew(token)}))
            count += len(rows)
    return count


def _encrypted_columns() -> Iterator[tuple[Table, Column[str]]]:
    for table in metadata.sorted_tables:
        for column in table.columns:
            if column.name.endswith("_encrypted"):
                yield table, column
