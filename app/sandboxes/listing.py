"""Pages of a team's sandboxes, in the order of their start."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from app.errors import InvalidRequest
from app.ids_and_time import rfc3339
from app.sandboxes.models import Sandbox, Status
from app.sandboxes.store import Place, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Which sandboxes are asked for; what is None does not matter."""

    states: tuple[Status, ...] = (Status.RUNNING, Status.PAUSED)
    metadata: Mapping[str, str] = field(default_factory=dict)
    """All of these pairs."""
    template: str | None = None
    started_after: datetime | None = None
    is_ascending: bool = False
    limit: int = 100
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    sandboxes: list[Sandbox]
    cursor: str | None
    """Where the next page begins; None after the last one."""


async def list_page(store: Store, team_id: str, listing: Listing) -> Page:
    """Stays right while sandboxes come and go: a cursor names a place in the order, not a number of rows.

    Raises: InvalidRequest for a cursor that is none.
    """
    after = None if listing.cursor is None else _place(listing.cursor)
    found: list[Sandbox] = []
    while True:
        batch = await store.page(
            team_id,
            states=listing.states,
            template=listing.template,
            started_after=listing.started_after,
            is_ascending=listing.is_ascending,
            after=after,
            limit=listing.limit + 1,
        )
        # Metadata is compared here, because databases disagree on how to look into JSON.
        found += [sandbox for sandbox in batch if listing.metadata.items() <= sandbox.metadata.items()]
        if len(found) > listing.limit:
            return Page(found[: listing.limit], _cursor(found[listing.limit - 1]))
        if len(batch) <= listing.limit:
            return Page(found, None)
        after = Place(batch[-1].started_at, batch[-1].id)


def _cursor(sandbox: Sandbox) -> str:
    return base64.urlsafe_b64encode(f"{rfc3339(sandbox.started_at)}__{sandbox.id}".encode()).decode().rstrip("=")


def _place(cursor: str) -> Place:
    try:
        started_at, _, sandbox_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition("__")
        return Place(datetime.fromisoformat(started_at).astimezone(UTC), sandbox_id)
    except (ValueError, OverflowError, binascii.Error):
        raise InvalidRequest(
            "nextToken is not one that this server gave: pass on the x-next-token header of the page before."
        ) from None
