"""Remembers what MCP servers listed, so that the next sandbox can list it before its servers have started."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import datetime, timedelta

from sqlalchemy import delete, insert, select

from app.database import Database
from app.database.tables import remembered_lists
from app.sandboxes.rehearsed_lists import RehearsedLists
from app.sandboxes.server_lists import LARGEST, Lists

_KEEP = timedelta(days=30)
_MOST_IN_MEMORY = 256


class ToolMemory:
    """By team, in the database for good, and the lists used last in memory."""

    def __init__(self, database: Database, *, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        self._recent: OrderedDict[tuple[str, str], Lists] = OrderedDict()
        self.rehearsed = RehearsedLists(database, now=now)
        """What stands in for what a team's own sandboxes have not shown yet."""

    async def recall(self, team_id: str, fingerprints: Iterable[str]) -> Mapping[str, Lists]:
        """By fingerprint, what is remembered of those given."""
        wanted = set(fingerprints)
        found = {one: self._recent[team_id, one] for one in wanted if (team_id, one) in self._recent}
        if missing := wanted - found.keys():
            query = select(remembered_lists).where(
                remembered_lists.c.team_id == team_id, remembered_lists.c.fingerprint.in_(missing)
            )
            async with self._database.reading() as connection:
                rows = (await connection.execute(query)).all()
            found |= {row.fingerprint: Lists(row.digest, row.lists.encode()) for row in rows}
        for fingerprint, lists in found.items():
            self._keep(team_id, fingerprint, lists)
        return found

    async def all(self) -> AsyncIterator[tuple[str, bytes]]:
        """Every server's name with what it listed, of all teams; what was seen last comes last."""
        table = remembered_lists
        async with self._database.reading() as connection:
            rows = (
                await connection.execute(select(table.c.team_id, table.c.fingerprint).order_by(table.c.seen_at))
            ).all()
        for row in rows:  # one at a time: they may be large
            one = select(table.c.server, table.c.lists).where(
                table.c.team_id == row.team_id, table.c.fingerprint == row.fingerprint
            )
            async with self._database.reading() as connection:
                found = (await connection.execute(one)).one_or_none()
            if found is not None:
                yield found.server, found.lists.encode()

    async def remember(self, team_id: str, fingerprint: str, server: str, lists: Lists) -> None:
        """In place of what was remembered before. `server` is its name, for people who look into the table."""
        if len(lists.content) > LARGEST:
            return
        now = self._now()
        table = remembered_lists
        async with self._database.transaction() as connection:
            await connection.execute(
                delete(table).where(table.c.team_id == team_id, table.c.fingerprint == fingerprint)
            )
            await connection.execute(
                insert(table).values(
                    team_id=team_id,
                    fingerprint=fingerprint,
                    server=server,
                    digest=lists.digest,
                    lists=lists.content.decode(),
                    seen_at=now,
                )
            )
            await connection.execute(delete(table).where(table.c.seen_at < now - _KEEP))
        self._keep(team_id, fingerprint, lists)

    def _keep(self, team_id: str, fingerprint: str, lists: Lists) -> None:
        self._recent[team_id, fingerprint] = lists
        self._recent.move_to_end((team_id, fingerprint))
        while len(self._recent) > _MOST_IN_MEMORY:
            self._recent.popitem(last=False)
