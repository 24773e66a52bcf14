"""Imports catalogs, keeps them up to date, and puts what they define into the catalog of this process.

Every control plane of an installation looks for changes of the others, so all of them soon name the same servers.
Running sandboxes keep what they were made of.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import structlog
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from app.catalog.catalog import Catalog
from app.catalog.definition import ServerDefinition
from app.catalog.errors import CatalogError
from app.catalog.fetching import FetchError, fetch_document
from app.catalog.formats import ReadCatalog, Refusal, read_document
from app.catalog.merging import OWN, SHIPPED, ImportedCatalog, Shadowed
from app.catalog.objections import Objection, objections_of
from app.catalog.sources import Source, SourceStore, StoredCatalog, digest_of
from app.errors import Conflict, DatabaseLocked, InvalidRequest, NotFound

_log = structlog.get_logger()

_WATCH_INTERVAL_S = 5.0
_UNCHANGED = " Nothing was changed."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a document changes in the servers of a catalog, by their names."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: Mapping[str, tuple[str, ...]]
    """Server -> the fields of its manifest that differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    source: Source
    servers: int
    """Definitions in the catalog, those refused at use among them."""
    not_run: Mapping[str, tuple[Objection, ...]]
    """Taken over whole and refused when they are used: server -> why."""
    refused: tuple[Refusal, ...]
    """Not taken over."""
    shadowed: tuple[Shadowed, ...]
    """Taken over and not used, as a definition of higher precedence has the name."""
    renamed: Mapping[str, str]
    """Server -> its key, where the key of its name belongs to another server."""
    change: Change


class CatalogImporter:
    def __init__(
        self,
        catalog: Catalog,
        store: SourceStore,
        *,
        now: Callable[[], datetime],
        watch_interval_s: float = _WATCH_INTERVAL_S,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._now = now
        self._watch_interval_s = watch_interval_s
        self._known: tuple[Source, ...] = ()
        self._reloading = asyncio.Lock()

    async def sources(self) -> tuple[Source, ...]:
        return await self._store.list()

    async def reload(self) -> None:
        """Take over what the database holds, if it is not what the catalog has."""
        # One after the other: a slow reload must not put what it read before an import over what the import brought.
        async with self._reloading:
            if await self._store.list() == self._known:
                return
            stored = await self._store.load()
            imported = [_imported(catalog) for catalog in stored]
            # Thousands of definitions take long enough to hold up the requests of others.
            await asyncio.to_thread(self._catalog.adopt, imported)
            self._known = tuple(catalog.source for catalog in stored)

    async def watch(self) -> None:
        """Take over what others change, until cancelled."""
        while True:
            await asyncio.sleep(self._watch_interval_s)
            try:
                await self.reload()
            except Exception as error:  # noqa: BLE001 - whatever it is must not end the following of all changes to come
                is_expected = isinstance(error, SQLAlchemyError | DatabaseLocked | OSError | CatalogError)
                log = _log.warning if is_expected else _log.exception
                log("catalog_reload_failed", reason=type(error).__name__)

    async def import_document(
        self, document: bytes, *, name: str | None = None, overrides: bool = False, digest: str | None = None
    ) -> ImportReport:
        """Take over a document that came in a request. Raises: InvalidRequest, Conflict."""
        return await self._import(document, None, name, overrides=overrides, digest=digest, loopback_allowed=False)

    async def import_origin(
        self,
        origin: str,
        *,
        name: str | None = None,
        overrides: bool = False,
        digest: str | None = None,
        by_operator: bool = False,
    ) -> ImportReport:
        """Take over the document of an https URL; a file or a URL of this machine only for the operator.

        `digest` is what the document must have, and pins it. Raises: InvalidRequest, Conflict.
        """
        document = await self._fetch(origin, by_operator=by_operator)
        return await self._import(
            document, origin, name, overrides=overrides, digest=digest, loopback_allowed=by_operator
        )

    async def refresh(self, name: str, *, by_operator: bool = False) -> ImportReport:
        """Take over what the catalog's origin holds now. Raises: NotFound, Conflict, InvalidRequest."""
        source = await self._find(name)
        return await self._import(
            await self._fetch_again(source, by_operator=by_operator),
            source.origin,
            name,
            overrides=source.overrides,
            digest=None,
            loopback_allowed=source.loopback_allowed,
        )

    async def diff(self, name: str, *, by_operator: bool = False) -> tuple[str, Change]:
        """The digest of what the origin holds now, and what a refresh would change. Raises as `refresh`."""
        source = await self._find(name)
        document = await self._fetch_again(source, by_operator=by_operator)
        read = await _read(document, source.origin or name)
        return digest_of(document), _change(await self._definitions_of(name), read.definitions)

    async def pin(self, name: str, digest: str | None = None) -> Source:
        """Let no refresh bring another document than this, by default the present one. Raises: NotFound, Conflict."""
        source = await self._find(name)
        if digest is not None and digest != source.digest:
            raise Conflict(
                f"Catalog {name} has the digest {source.digest}, not {digest}. Import the document that has it first."
            )
        if not await self._store.pin(name, source.digest):
            raise Conflict(f"Catalog {name} was changed by somebody else in this moment. Try again.")
        return await self._with_pin(source, source.digest)

    async def unpin(self, name: str) -> Source:
        """Raises: NotFound."""
        source = await self._find(name)
        await self._store.unpin(name)
        return await self._with_pin(source, None)

    async def remove(self, name: str) -> None:
        """Take the catalog's servers away. Raises: NotFound."""
        if not await self._store.remove(name):
            raise await self._not_found(name)
        await self.reload()

    async def refused(self, name: str) -> tuple[Refusal, ...]:
        """The entries of a catalog that were not taken over. Raises: NotFound."""
        await self._find(name)
        return next((stored.refused for stored in await self._store.load() if stored.source.name == name), ())

    async def _with_pin(self, source: Source, digest: str | None) -> Source:
        await self.reload()
        return replace(source, pinned_digest=digest)

    async def _import(
        self,
        document: bytes,
        origin: str | None,
        name: str | None,
        *,
        overrides: bool,
        digest: str | None,
        loopback_allowed: bool,
    ) -> ImportReport:
        found = digest_of(document)
        read = await _read(document, origin or name or "the document")
        if digest is not None and found != digest:
            raise Conflict(
                f"{origin or 'The document'} has the digest {found}, and {digest} was asked for.{_UNCHANGED}"
            )
        if not name:
            name = _checked_name(_name_of(origin, read))
            await self._check_same_origin(name, origin)
        source = Source(
            name=_checked_name(name),
            title=read.title,
            origin=origin,
            loopback_allowed=loopback_allowed,
            format=read.format,
            digest=found,
            pinned_digest=digest,
            overrides=overrides,
            imported_at=self._now(),
        )
        before = await self._definitions_of(name)
        try:
            stored = await self._store.put(source, document, read)
        except IntegrityError:
            raise Conflict(f"Catalog {name} was imported by somebody else in this moment. Try again.") from None
        if stored.digest != found:
            raise Conflict(
                f"{origin or 'The document'} has the digest {found}, and catalog {name} is pinned to {stored.digest}."
                f"{_UNCHANGED} `sandgate catalog diff` shows what is different; unpin the catalog to take it over."
            )
        await self.reload()
        return self._report(stored, read, before)

    async def _check_same_origin(self, name: str, origin: str | None) -> None:
        """Raises: Conflict if a catalog that nobody asked to replace has a name that nobody asked for."""
        there = next((source for source in await self._store.list() if source.name == name), None)
        if there is not None and there.origin != origin:
            raise Conflict(
                f"There is a catalog {name} already, from {there.origin or 'a request'}. State `name`: another one, or"
                f" {name} to have it replaced.{_UNCHANGED}"
            )

    def _report(self, source: Source, read: ReadCatalog, before: Mapping[str, ServerDefinition]) -> ImportReport:
        not_run = {definition.name: objections_of(definition) for definition in read.definitions}
        keys = {definition.name: definition.key for definition in read.definitions}
        used = {entry.definition.name: entry.definition.key for entry in self._catalog.entries_of(source.name)}
        return ImportReport(
            source=source,
            servers=len(read.definitions),
            not_run={name: objections for name, objections in not_run.items() if objections},
            refused=read.refused,
            shadowed=tuple(item for item in self._catalog.shadowed if item.source == source.name),
            renamed={name: key for name, key in used.items() if key != keys.get(name)},
            change=_change(before, read.definitions),
        )

    async def _definitions_of(self, name: str) -> dict[str, ServerDefinition]:
        stored = [stored for stored in await self._store.load() if stored.source.name == name]
        return {definition.name: definition for catalog in stored for definition in catalog.definitions}

    async def _find(self, name: str) -> Source:
        source = next((source for source in await self._store.list() if source.name == name), None)
        if source is None:
            raise await self._not_found(name)
        return source

    async def _not_found(self, name: str) -> NotFound:
        names = ", ".join(source.name for source in await self._store.list())
        return NotFound(f"There is no imported catalog {name!r}. There are: {names or 'none'}.")

    async def _fetch_again(self, source: Source, *, by_operator: bool) -> bytes:
        if source.origin is None:
            raise InvalidRequest(
                f"Catalog {source.name} came in a request and has no origin to look at. Import its document again."
            )
        return await self._fetch(source.origin, by_operator=by_operator or source.loopback_allowed)

    async def _fetch(self, origin: str, *, by_operator: bool) -> bytes:
        if origin.startswith(("http://", "https://")):
            return await fetch_document(origin, loopback_allowed=by_operator)
        if not by_operator:
            raise FetchError(f"{origin[:200]!r} is no https URL.")
        try:
            return await asyncio.to_thread(Path(origin).read_bytes)
        except OSError as error:
            raise FetchError(f"{origin}: {error.strerror}.") from error


async def _read(document: bytes, origin: str) -> ReadCatalog:
    try:
        return await asyncio.to_thread(read_document, document, origin=origin)
    except CatalogError as error:
        raise InvalidRequest("; ".join(error.problems)) from error


def _imported(stored: StoredCatalog) -> ImportedCatalog:
    source = stored.source
    return ImportedCatalog(source.name, source.origin or source.name, source.overrides, stored.definitions)


def _name_of(origin: str | None, read: ReadCatalog) -> str:
    """What a catalog is called unless somebody says: after its title, its file, or its format."""
    stem = Path(urlsplit(origin).path).stem if origin else ""
    text = stem if stem not in ("", "catalog", "server", "mcp", "index") else read.title or read.format
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64].lower() or read.format


def _checked_name(name: str) -> str:
    if _NAME.fullmatch(name) is None or name in (SHIPPED, OWN):
        raise InvalidRequest(
            f"{name[:80]!r} cannot be the name of a catalog: it has up to 64 of A-Z a-z 0-9 . _ -, and is neither"
            f" {SHIPPED!r} nor {OWN!r}."
        )
    return name


def _change(before: Mapping[str, ServerDefinition], after: tuple[ServerDefinition, ...]) -> Change:
    now = {definition.name: definition for definition in after}
    return Change(
        added=tuple(sorted(now.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - now.keys())),
        changed={
            name: fields
            for name in sorted(now.keys() & before.keys())
            if (fields := _differing(before[name], now[name]))
        },
    )


def _differing(before: ServerDefinition, after: ServerDefinition) -> tuple[str, ...]:
    old, new = (definition.model_dump(mode="json", by_alias=True) for definition in (before, after))
    return tuple(field for field in new if old[field] != new[field])
