"""What one server offers: its tools, prompts, resources and resource templates, as it last listed them."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import orjson

from sandgate_gateway.callers import GATEWAY
from sandgate_gateway.jsonrpc import MAX_DEPTH, RpcError, is_writable, values_in
from sandgate_gateway.lists import CAPABILITY, KEYS, KINDS, METHODS, Item, Kind, Offer, distinct
from sandgate_gateway.protocol import INTERNAL_ERROR, METHOD_NOT_FOUND
from sandgate_gateway.upstreams.connection import Connection

UNANNOUNCED_TTL_S = 30.0
"""How long a list is good for if the server does not say when it changes, or has no way to."""

MAX_TTL_MS = 24 * 3600 * 1000

MAX_PAGES = 100
MAX_ITEMS = 10_000
MAX_TEMPLATES = 1000
"""Of URIs: what no list has is held against each of them."""

MAX_LIST_BYTES = 32 * 1024 * 1024
MAX_LIST_VALUES = 500_000
"""Of all pages together: they stay in memory."""


@dataclass
class Listing:
    """One list of one server, all pages of it."""

    items: list[Item] = field(default_factory=list)
    by_key: dict[str, Item] = field(default_factory=dict)
    """The items that count, by name or URI."""
    ttl_ms: int = 0
    """As a modern server put it; 0 where it said nothing."""
    is_public: bool = False
    good_until: float = 0.0
    """Monotonic time."""
    is_read: bool = True
    """False for one that is remembered, or was never asked for."""
    amiss: str | None = None
    """What of the list does not count, for a person; follows the server's name."""


class Catalogue:
    """The lists of one server. `changed` is called whenever one of them is different from before."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._listings: dict[Kind, Listing] = {kind: Listing(is_read=False) for kind in KINDS}
        self._loading: dict[Kind, asyncio.Lock] = {kind: asyncio.Lock() for kind in KINDS}
        self._news: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        """How often the server has said of a list that it has changed."""
        self._changed = changed
        self.version = 0
        """Counts the lists read anew."""
        self.is_withdrawn = False
        """Whether the server is gone for good: nothing is offered any more, but what it was is still known."""

    def remember(self, offer: Offer) -> None:
        """Take what the server offered in an earlier life for its lists until it has been asked."""
        for kind in KINDS:
            items = offer.lists.get(kind, [])
            self._listings[kind] = Listing(items=items, by_key=distinct(kind, items), is_read=False)

    def withdraw(self) -> None:
        self.is_withdrawn = True

    def items(self, kind: Kind) -> dict[str, Item]:
        """What is offered now, by name or URI."""
        return {} if self.is_withdrawn else self._listings[kind].by_key

    def former_items(self, kind: Kind) -> dict[str, Item]:
        """What was offered before it was withdrawn."""
        return self._listings[kind].by_key if self.is_withdrawn else {}

    def listing(self, kind: Kind) -> Listing:
        return self._listings[kind]

    @property
    def is_read(self) -> bool:
        """Whether every list is the server's own answer."""
        return all(listing.is_read for listing in self._listings.values())

    @property
    def amiss(self) -> str | None:
        """What is wrong with the lists as they stand; None if nothing is."""
        return "; ".join(listing.amiss for listing in self._listings.values() if listing.amiss) or None

    def invalidate(self, capability: str) -> None:
        """A server said that what it offers under this capability has changed."""
        for kind in KINDS:
            if CAPABILITY[kind] == capability:
                self._invalidate(kind)

    def invalidate_all(self) -> None:
        for kind in KINDS:
            self._invalidate(kind)

    def _invalidate(self, kind: Kind) -> None:
        self._listings[kind].good_until = 0.0
        self._news[kind] += 1

    def postpone(self, kind: Kind, seconds: float) -> None:
        """Take the list for good a little longer, because asking failed."""
        self._listings[kind].good_until = time.monotonic() + seconds

    async def refresh(self, kind: Kind, connection: Connection) -> None:
        """Ask the server again if the list is no longer good. Raises: RpcError, ConnectionEndedError; the last known
        list stays in that case. Has no bound of its own."""
        async with self._loading[kind]:
            if time.monotonic() < self._listings[kind].good_until:
                return
            news = self._news[kind]
            listing = await _fetch(kind, connection)
            if news != self._news[kind]:  # it may have changed after it was answered
                listing.good_until = 0.0
            is_news = listing.items != self._listings[kind].items
            self._listings[kind] = listing
            self.version += 1
        if is_news:
            self._changed()


@dataclass
class _Room:
    """What is left of the memory that one list may take."""

    left_bytes: int = MAX_LIST_BYTES
    left_values: int = MAX_LIST_VALUES

    def has_room_for(self, item: Item) -> bool:
        """It is taken then."""
        written = orjson.dumps(item)
        self.left_bytes -= len(written)
        self.left_values -= values_in(written)
        return self.left_bytes >= 0 and self.left_values >= 0


async def _fetch(kind: Kind, connection: Connection) -> Listing:
    declared = connection.capabilities.get(CAPABILITY[kind])
    if not isinstance(declared, dict):
        return Listing(good_until=float("inf"))
    listing = Listing()
    has_too_deep = is_too_large = has_more = False
    most = MAX_TEMPLATES if kind == "resourceTemplates" else MAX_ITEMS
    room = _Room()
    cursor: str | None = None
    for page in range(MAX_PAGES):
        try:
            result = await connection.request(METHODS[kind], {} if cursor is None else {"cursor": cursor}, GATEWAY)
        except RpcError as error:
            if error.code == METHOD_NOT_FOUND and page == 0:  # resources without templates are common
                break
            raise
        value = result.value
        entries = value.get(kind) if isinstance(value, dict) else None
        if not isinstance(entries, list):
            raise RpcError(INTERNAL_ERROR, f"answered {METHODS[kind]} without a list of {kind}")
        items = [entry for entry in entries if isinstance(entry, dict)]
        if not is_writable(items):
            has_too_deep = True
            items = [item for item in items if is_writable(item)]
        kept = list(takewhile(room.has_room_for, items))
        is_too_large = len(kept) < len(items)
        listing.items += kept
        if page == 0:
            ttl = value.get("ttlMs")
            listing.ttl_ms = int(min(ttl, MAX_TTL_MS)) if isinstance(ttl, int | float) and ttl > 0 else 0
            listing.is_public = value.get("cacheScope") == "public"
        cursor = value.get("nextCursor")
        has_more = isinstance(cursor, str) or len(listing.items) > most
        if is_too_large or not isinstance(cursor, str) or len(listing.items) > most:
            break
    del listing.items[most:]
    listing.by_key = distinct(kind, listing.items)
    if is_too_large:
        listing.amiss = (
            f"lists more {kind} than the gateway keeps; those after the first {len(listing.items)} are left out"
        )
    else:
        listing.amiss = _what_is_amiss(kind, listing, has_more=has_more, has_too_deep=has_too_deep)
    listing.good_until = _good_until(listing, declared, connection)
    return listing


def _what_is_amiss(kind: Kind, listing: Listing, *, has_more: bool, has_too_deep: bool) -> str | None:
    if has_more:
        return f"lists more than {len(listing.items)} {kind}; the others are left out"
    if has_too_deep:
        return f"lists {kind} that are nested more than {MAX_DEPTH} deep; they are left out"
    if len(listing.by_key) == len(listing.items):
        return None
    seen: set[Any] = set()
    for item in listing.items:
        name = item.get(KEYS[kind])
        if not isinstance(name, str) or not name:
            return f"lists {kind} without a {KEYS[kind]}; they are left out"
        if name in seen:
            return f"lists {name[:100]!r} more than once among its {kind}; the first one counts"
        seen.add(name)
    return None


def _good_until(listing: Listing, declared: dict[str, Any], connection: Connection) -> float:
    if declared.get("listChanged") and connection.hears_changes:
        return float("inf")
    if connection.era == "modern":
        return time.monotonic() + listing.ttl_ms / 1000
    return time.monotonic() + UNANNOUNCED_TTL_S
