"""What servers of the catalog listed when they were tried with made-up options, before any caller named them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import datetime

from sqlalchemy import delete, func, insert, select

from app.catalog.rehearsals import Rehearsal, fingerprint_of_any
from app.database import Database
from app.database.tables import rehearsed_lists
from app.sandboxes.server_lists import LARGEST, Lists


class RehearsedLists:
    """In the database, for all teams: nothing of a team is in them."""

    def __init__(self, database: Database, *, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now

    async def find(self, fingerprints: Iterable[str]) -> Mapping[str, Lists]:
        """By fingerprint, those of them there are."""
        table = rehearsed_lists
        query = select(table).where(table.c.fingerprint.in_(set(fingerprints)))
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return {row.fingerprint: Lists(row.digest, row.lists.encode()) for row in rows}

    async def has(self, rehearsals: Iterable[Rehearsal]) -> bool:
        """Whether one of them is kept, or there is none whose lists may be."""
        wanted = {rehearsal.fingerprint for rehearsal in rehearsals if rehearsal.fingerprint is not None}
        table = rehearsed_lists
        query = select(func.count()).select_from(table).where(table.c.fingerprint.in_(wanted))
        async with self._database.reading() as connection:
            return not wanted or bool((await connection.execute(query)).scalar_one())

    async def keep(self, server: str, rehearsed: Iterable[tuple[Rehearsal, Lists | None]]) -> None:
        """What the rehearsals of a server (its catalog name) came to, the full one first, in the place of earlier ones.

        None stands for one that listed nothing. Safe to repeat.
        """
        results = [(rehearsal.fingerprint, lists) for rehearsal, lists in rehearsed]
        kept = {
            fingerprint: lists
            for fingerprint, lists in results
            if fingerprint is not None and lists is not None and len(lists.content) <= LARGEST
        }
        full = results[0][0] if len(results) > 1 else None
        if full in kept and {lists and lists.digest for _, lists in results} == {kept[full].digest}:
            kept[fingerprint_of_any(full)] = kept[full]
        now = self._now()
        table = rehearsed_lists
        async with self._database.transaction() as connection:
            await connection.execute(delete(table).where(table.c.server == server))
            for fingerprint, lists in kept.items():
                row = {"fingerprint": fingerprint, "server": server, "digest": lists.digest, "seen_at": now}
                await connection.execute(insert(table).values(**row, lists=lists.content.decode()))

    async def revision(self) -> object:
        """Another one whenever something else is kept."""
        table = rehearsed_lists
        async with self._database.reading() as connection:
            return tuple((await connection.execute(select(func.count(), func.max(table.c.seen_at)))).one())

    async def all(self) -> AsyncIterator[tuple[str, bytes]]:
        """Every server's catalog name with what it listed, once for each different list."""
        table = rehearsed_lists
        async with self._database.reading() as connection:
            rows = (await connection.execute(select(table.c.server, table.c.digest).distinct())).all()
        for row in rows:  # one at a time: they may be large
            one = select(table.c.lists).where(table.c.server == row.server, table.c.digest == row.digest).limit(1)
            async with self._database.reading() as connection:
                content = (await connection.execute(one)).scalar_one_or_none()
            if content is not None:
                yield row.server, content.encode()
