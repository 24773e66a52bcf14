"""One installation to a database: to any other one every sandbox in it looks dead, for it cannot see its pods."""

from __future__ import annotations

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from app.database.connection import Database
from app.database.tables import installations

_ONLY = 1


async def claim_database(database: Database, installation: str) -> str:
    """Record whose the database is, unless that is known already. The name of the installation that has it."""
    query = select(installations.c.name).where(installations.c.id == _ONLY)
    async with database.reading() as connection:
        owner = (await connection.execute(query)).scalar_one_or_none()
    if owner is not None:
        return str(owner)
    try:
        async with database.transaction() as connection:
            await connection.execute(insert(installations).values(id=_ONLY, name=installation))
    except IntegrityError:  # another one came first
        async with database.reading() as connection:
            return str((await connection.execute(query)).scalar_one())
    return installation
