"""Imported catalogs in the database, where every control plane of an installation finds the same."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import orjson
from pydantic import ValidationError
from sqlalchemy import Row, delete, func, insert, select, update

from app.catalog.definition import ServerDefinition
from app.catalog.errors import CatalogError
from app.catalog.formats import ReadCatalog, Refusal, read_document
from app.catalog.formats.document import READER_REVISION
from app.database import Database
from app.database.tables import catalogs
from app.vault import Vault

_DESCRIPTION = (
    catalogs.c.name, catalogs.c.title, catalogs.c.origin, catalogs.c.loopback_allowed, catalogs.c.format,
    catalogs.c.digest, catalogs.c.pinned_digest, catalogs.c.overrides, catalogs.c.imported_at,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An imported catalog without its content."""

    name: str
    title: str | None
    origin: str | None
    """An https URL, or a file for the operator's own command; None for a document that came in a request."""
    loopback_allowed: bool
    """Whether an operator imported it, who may also fetch from the machine itself."""
    format: str
    digest: str
    """`sha256:<hexadecimal>` of the document."""
    pinned_digest: str | None
    """The one digest that a refresh may bring."""
    overrides: bool
    """Whether its servers take the place of shipped ones with the same name."""
    imported_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCatalog:
    source: Source
    definitions: tuple[ServerDefinition, ...]
    refused: tuple[Refusal, ...]


def digest_of(document: bytes) -> str:
    return f"sha256:{hashlib.sha256(document).hexdigest()}"


class SourceStore:
    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def list(self) -> tuple[Source, ...]:
        """In the order in which they were imported first."""
        async with self._database.reading() as connection:
            rows = await connection.execute(select(*_DESCRIPTION).order_by(catalogs.c.position))
            return tuple(Source(**row._mapping) for row in rows)

    async def load(self) -> tuple[StoredCatalog, ...]:
        """All with their content, in order. What an older reader left is read again from the document."""
        async with self._database.reading() as connection:
            columns = (*_DESCRIPTION, catalogs.c.reader_revision, catalogs.c.manifests, catalogs.c.refused)
            rows = (await connection.execute(select(*columns).order_by(catalogs.c.position))).all()
        return tuple([await self._stored(row) for row in rows])

    async def put(self, source: Source, document: bytes, read: ReadCatalog) -> Source:
        """Insert it behind all others, or replace the one of its name where it stands; a pin stays.

        Gives the catalog as it is then: as it was, if it is pinned to another document.
        """
        content = {
            **asdict(source),
            **await self._content_of(document, read),
        }
        kept = {name: value for name, value in content.items() if name != "pinned_digest" or value is not None}
        named = catalogs.c.name == source.name
        free = catalogs.c.pinned_digest.is_(None) | (catalogs.c.pinned_digest == source.digest)
        async with self._database.transaction() as connection:
            known = await connection.execute(update(catalogs).where(named, free).values(**kept))
            there = (await connection.execute(select(*_DESCRIPTION).where(named))).one_or_none()
            if known.rowcount == 0 and there is None:
                last = (await connection.execute(select(func.max(catalogs.c.position)))).scalar_one()
                await connection.execute(insert(catalogs).values(**content, position=(last or 0) + 1))
        return source if there is None else Source(**there._mapping)

    async def pin(self, name: str, digest: str) -> bool:
        """Whether it has the document of this digest, to which it is pinned then."""
        same = (catalogs.c.name == name) & (catalogs.c.digest == digest)
        async with self._database.transaction() as connection:
            pinned = await connection.execute(update(catalogs).where(same).values(pinned_digest=digest))
        return pinned.rowcount > 0

    async def unpin(self, name: str) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(update(catalogs).where(catalogs.c.name == name).values(pinned_digest=None))

    async def remove(self, name: str) -> bool:
        async with self._database.transaction() as connection:
            return (await connection.execute(delete(catalogs).where(catalogs.c.name == name))).rowcount > 0

    async def _stored(self, row: Row[*tuple[Any, ...]]) -> StoredCatalog:
        source = Source(**{column.name: row._mapping[column.name] for column in _DESCRIPTION})
        # What this version would not take is read again too, so that it becomes a refusal and keeps nobody else out.
        with suppress(ValidationError):
            if row.reader_revision == READER_REVISION:
                return StoredCatalog(
                    source=source,
                    definitions=await asyncio.to_thread(_definitions_of, row.manifests),
                    refused=tuple(Refusal(**refusal) for refusal in row.refused),
                )
        document = await self._document_of(source)
        read = await asyncio.to_thread(_read_again, document, source)
        values = await self._content_of(document, read)
        # Not over what somebody imported meanwhile.
        same = (catalogs.c.name == source.name) & (catalogs.c.digest == source.digest)
        async with self._database.transaction() as connection:
            await connection.execute(update(catalogs).where(same).values(**values))
        return StoredCatalog(source=source, definitions=read.definitions, refused=read.refused)

    async def _document_of(self, source: Source) -> bytes:
        columns = (catalogs.c.document_encrypted, catalogs.c.document)
        async with self._database.reading() as connection:
            row = (await connection.execute(select(*columns).where(catalogs.c.name == source.name))).one()
        if row.document_encrypted is None:
            return zlib.decompress(row.document)
        return await asyncio.to_thread(self._opened, row.document_encrypted)

    async def _content_of(self, document: bytes, read: ReadCatalog) -> dict[str, Any]:
        """The columns of a document and of what this version reads in it."""
        manifests = [
            definition.model_dump(mode="json", by_alias=True, exclude_defaults=True) for definition in read.definitions
        ]
        return {
            "reader_revision": READER_REVISION,
            "document_encrypted": await asyncio.to_thread(self._sealed, document),
            "document": None,
            "manifests": zlib.compress(orjson.dumps(manifests)),
            "refused": [asdict(refusal) for refusal in read.refused],
        }

    def _sealed(self, document: bytes) -> str:
        return self._vault.encrypt(base64.b64encode(zlib.compress(document)).decode())

    def _opened(self, sealed: str) -> bytes:
        return zlib.decompress(base64.b64decode(str(self._vault.decrypt(sealed))))


def _read_again(document: bytes, source: Source) -> ReadCatalog:
    try:
        return read_document(document, origin=source.origin or source.name)
    except CatalogError as error:
        refusals = tuple(Refusal(source.name, "", problem) for problem in error.problems)
        return ReadCatalog(source.format, source.title, (), refusals)


def _definitions_of(manifests: bytes) -> tuple[ServerDefinition, ...]:
    return tuple(ServerDefinition.imported(manifest) for manifest in orjson.loads(zlib.decompress(manifests)))
