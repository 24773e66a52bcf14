"""Who may call: teams and their API keys. A key is shown once; only its hash is stored."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, insert, select

from app.database import Database
from app.database.tables import api_keys, teams
from app.errors import Unauthorized
from app.ids_and_time import new_id, utc_now

_KEY_PATTERN = re.compile(r"e2b_[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Team:
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ApiKey:
    id: str
    team_id: str
    name: str
    hint: str
    """The key's last four characters, to tell keys apart."""
    created_at: datetime


class Accounts:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def authenticate(self, key: str | None) -> Team:
        """The team a key belongs to. Raises: Unauthorized."""
        if not key:
            raise Unauthorized("No API key. Send it in the header X-API-KEY, or as Authorization: Bearer.")
        if not _KEY_PATTERN.fullmatch(key):
            raise Unauthorized("This is not an API key of Sandgate: they look like e2b_ and 40 hexadecimal digits.")
        async with self._database.reading() as connection:
            row = (
                await connection.execute(
                    select(teams.c.id, teams.c.name)
                    .join(api_keys, api_keys.c.team_id == teams.c.id)
                    .where(api_keys.c.key_hash == _hash(key))
                )
            ).one_or_none()
        if row is None:
            raise Unauthorized("This API key is unknown or was deleted. `sandgate keys create` makes a new one.")
        return Team(row.id, row.name)

    async def create_team(self, name: str) -> Team:
        team = Team(new_id("team"), name)
        async with self._database.transaction() as connection:
            await connection.execute(insert(teams).values(id=team.id, name=name, created_at=utc_now()))
        return team

    async def default_team(self) -> Team | None:
        """The team that was made first."""
        async with self._database.transaction() as connection:
            row = (await connection.execute(select(teams.c.id, teams.c.name).order_by(teams.c.created_at))).first()
        return None if row is None else Team(row.id, row.name)

    async def create_key(self, team: Team, name: str) -> str:
        """A new key of the team: `e2b_` and 40 hexadecimal digits, the form that every E2B SDK accepts."""
        key = "e2b_" + secrets.token_hex(20)
        async with self._database.transaction() as connection:
            await connection.execute(
                insert(api_keys).values(
                    id=new_id("key"),
                    team_id=team.id,
                    name=name,
                    key_hash=_hash(key),
                    hint=key[-4:],
                    created_at=utc_now(),
                )
            )
        return key

    async def list_keys(self) -> list[ApiKey]:
        columns = (api_keys.c.id, api_keys.c.team_id, api_keys.c.name, api_keys.c.hint, api_keys.c.created_at)
        async with self._database.transaction() as connection:
            rows = await connection.execute(select(*columns).order_by(api_keys.c.created_at))
            return [ApiKey(*row) for row in rows]

    async def delete_key(self, key_id: str) -> bool:
        """Whether there was such a key. It is refused from now on."""
        async with self._database.transaction() as connection:
            result = await connection.execute(delete(api_keys).where(api_keys.c.id == key_id))
        return result.rowcount == 1


def _hash(key: str) -> str:
    # Keys are 160 random bits, so a fast hash is as safe as a slow one here.
    return hashlib.sha256(key.encode()).hexdigest()
