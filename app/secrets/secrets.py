"""What callers can do with secrets, and where they are recorded. No function gives a value back."""

from __future__ import annotations

from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from sqlalchemy import ColumnElement, RowMapping, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from app.database import Database
from app.database.tables import secrets
from app.errors import Conflict, InvalidRequest, NotFound
from app.ids_and_time import new_id
from app.vault import Vault

_ID_PREFIX = "sec"
_LONGEST_NAME = 256
_MOST_VALUE_BYTES = 8192
_MOST_METADATA = 32
_MOST_KEY_BYTES = 128
_MOST_METADATA_VALUE_BYTES = 1024
_MOST_METADATA_BYTES = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """All that is told of a secret."""

    id: str
    name: str
    version: int
    """Counts the values it has had."""
    metadata: Mapping[str, str]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Page:
    secrets: list[Secret]
    next_token: str | None
    """What the page after this one is asked for with; None at the end."""


class Secrets:
    def __init__(self, *, database: Database, vault: Vault, now: Callable[[], datetime]) -> None:
        self._database = database
        self._vault = vault
        self._now = now

    async def create(self, team_id: str, name: str, value: str, metadata: Mapping[str, str]) -> Secret:
        """The name is kept in lower case. Raises: InvalidRequest, Conflict (name taken)."""
        now = self._now()
        secret = Secret(
            id=new_id(_ID_PREFIX),
            name=_checked_name(name),
            version=1,
            metadata=_checked_metadata(metadata),
            created_at=now,
            updated_at=now,
        )
        try:
            async with self._database.transaction() as connection:
                await connection.execute(
                    insert(secrets).values(
                        id=secret.id,
                        team_id=team_id,
                        name=secret.name,
                        version=1,
                        metadata=dict(secret.metadata),
                        value_encrypted=self._vault.encrypt(_checked_value(value)),
                        created_at=now,
                        updated_at=now,
                    )
                )
        except IntegrityError:
            raise Conflict(f"There is a secret {secret.name!r} already. Update it, or delete it first.") from None
        return secret

    async def update(self, team_id: str, key: str, value: str, metadata: Mapping[str, str] | None) -> Secret:
        """A new version. `key` is id or name; `metadata` None keeps what is there. Raises: InvalidRequest, NotFound."""
        changes: dict[str, object] = {
            "version": secrets.c.version + 1,
            "value_encrypted": self._vault.encrypt(_checked_value(value)),
            "updated_at": self._now(),
        }
        if metadata is not None:
            changes["metadata"] = dict(_checked_metadata(metadata))
        async with self._database.transaction() as connection:
            await connection.execute(update(secrets).where(_is(team_id, key)).values(changes))
            row = (await connection.execute(select(secrets).where(_is(team_id, key)))).mappings().one_or_none()
        return _found(row, key)

    async def get(self, team_id: str, key: str) -> Secret:
        """By id or name. Raises: NotFound, also for another team's secret."""
        async with self._database.reading() as connection:
            row = (await connection.execute(select(secrets).where(_is(team_id, key)))).mappings().one_or_none()
        return _found(row, key)

    async def page(self, team_id: str, *, limit: int, after: str | None) -> Page:
        """By name, at most `limit`. `after` is an earlier page's `next_token`. Raises: InvalidRequest."""
        query = select(secrets).where(secrets.c.team_id == team_id).order_by(secrets.c.name).limit(limit + 1)
        if after is not None:
            query = query.where(secrets.c.name > _name_in(after))
        async with self._database.reading() as connection:
            found = [_secret(row) for row in (await connection.execute(query)).mappings()]
        return Page(found[:limit], _token_of(found[limit - 1].name) if len(found) > limit else None)

    async def delete(self, team_id: str, key: str) -> None:
        """By id or name. Raises: NotFound."""
        async with self._database.transaction() as connection:
            result = await connection.execute(delete(secrets).where(_is(team_id, key)))
        if result.rowcount == 0:
            raise _not_found(key)


def _token_of(name: str) -> str:
    return urlsafe_b64encode(name.encode()).decode()


def _name_in(token: str) -> str:
    try:
        return b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError as error:
        raise InvalidRequest("nextToken: this is not one that an earlier page was answered with.") from error


def _is(team_id: str, key: str) -> ColumnElement[bool]:
    return and_(secrets.c.team_id == team_id, or_(secrets.c.id == key, secrets.c.name == key.lower()))


def _found(row: RowMapping | None, key: str) -> Secret:
    if row is None:
        raise _not_found(key)
    return _secret(row)


def _not_found(key: str) -> NotFound:
    return NotFound(f"Secret {key} was not found.")


def _secret(row: RowMapping) -> Secret:
    return Secret(
        id=row["id"],
        name=row["name"],
        version=row["version"],
        metadata=cast(Mapping[str, str], row["metadata"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _checked_name(name: str) -> str:
    """Names stand in `${e2b.secrets.<name>}` and in paths of this API."""
    canonical = name.strip().lower()
    if not canonical or len(canonical) > _LONGEST_NAME or any(c in "{}/" or not c.isprintable() for c in canonical):
        raise InvalidRequest(
            f"name: a secret's name has 1 to {_LONGEST_NAME} characters, and no brace, slash or control character."
        )
    if canonical.startswith(f"{_ID_PREFIX}_"):
        raise InvalidRequest(f"name: {_ID_PREFIX}_ is how the ids of secrets begin; choose another name.")
    return canonical


def _checked_value(value: str) -> str:
    if not value:
        raise InvalidRequest("value: a secret's value must not be empty.")
    if len(value.encode()) > _MOST_VALUE_BYTES:
        raise InvalidRequest(f"value: a secret's value has at most {_MOST_VALUE_BYTES} bytes.")
    return value


def _checked_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    sizes = [(len(key.encode()), len(value.encode())) for key, value in metadata.items()]
    if len(sizes) > _MOST_METADATA or sum(map(sum, sizes)) > _MOST_METADATA_BYTES:
        raise InvalidRequest(f"metadata: at most {_MOST_METADATA} entries and {_MOST_METADATA_BYTES} bytes in total.")
    if any(key > _MOST_KEY_BYTES or value > _MOST_METADATA_VALUE_BYTES for key, value in sizes):
        raise InvalidRequest(
            f"metadata: a key has at most {_MOST_KEY_BYTES} bytes, a value at most {_MOST_METADATA_VALUE_BYTES}."
        )
    return metadata
