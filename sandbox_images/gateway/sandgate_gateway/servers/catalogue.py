"""What one server offers: its tools, prompts, resources and resource templates, as it last listed them."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from sandgate_gateway.callers import GATEWAY
from sandgate_gateway.jsonrpc import RpcError
from sandgate_gateway.protocol import INTERNAL_ERROR, METHOD_NOT_FOUND
from sandgate_gateway.upstreams.connection import Connection

Kind = Literal["tools", "prompts", "resources", "resourceTemplates"]

METHODS: dict[Kind, str] = {
    "tools": "tools/list",
    "prompts": "prompts/list",
    "resources": "resources/list",
    "resourceTemplates": "resources/templates/list",
}
CAPABILITY: dict[Kind, str] = {
    "tools": "tools",
    "prompts": "prompts",
    "resources": "resources",
    "resourceTemplates": "resources",
}
KINDS: tuple[Kind, ...] = tuple(METHODS)

UNANNOUNCED_TTL_S = 30.0
"""How long a list is good for if the server does not say when it changes, or has no way to."""

MAX_PAGES = 100
MAX_ITEMS = 10_000


@dataclass
class Listing:
    """One list of one server, all pages of it."""

    items: list[dict[str, Any]] = field(default_factory=list)
    ttl_ms: int = 0
    """As a modern server put it; 0 where it said nothing."""
    is_public: bool = False
    good_until: float = 0.0
    """Monotonic time."""


class Catalogue:
    """The lists of one server. `changed` is called whenever one of them is different from before."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._listings: dict[Kind, Listing] = {kind: Listing() for kind in KINDS}
        self._loading: dict[Kind, asyncio.Lock] = {kind: asyncio.Lock() for kind in KINDS}
        self._changed = changed

    def items(self, kind: Kind) -> list[dict[str, Any]]:
        return self._listings[kind].items

    def listing(self, kind: Kind) -> Listing:
        return self._listings[kind]

    def invalidate(self, capability: str) -> None:
        """A server said that what it offers under this capability has changed."""
        for kind, listing in self._listings.items():
            if CAPABILITY[kind] == capability:
                listing.good_until = 0.0

    def invalidate_all(self) -> None:
        for listing in self._listings.values():
            listing.good_until = 0.0

    def postpone(self, kind: Kind, seconds: float) -> None:
        """Take the list for good a little longer, because asking failed."""
        self._listings[kind].good_until = time.monotonic() + seconds

    async def refresh(self, kind: Kind, connection: Connection) -> None:
        """Ask the server again if the list is no longer good. Raises: RpcError, ConnectionEndedError; the last known
        list stays in that case. Has no bound of its own."""
        async with self._loading[kind]:
            if time.monotonic() < self._listings[kind].good_until:
                return
            listing = await _fetch(kind, connection)
            is_news = listing.items != self._listings[kind].items
            self._listings[kind] = listing
        if is_news:
            self._changed()


async def _fetch(kind: Kind, connection: Connection) -> Listing:
    declared = connection.capabilities.get(CAPABILITY[kind])
    if not isinstance(declared, dict):
        return Listing(good_until=float("inf"))
    listing = Listing()
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
        listing.items.extend(entry for entry in entries if isinstance(entry, dict))
        if page == 0:
            ttl = value.get("ttlMs")
            listing.ttl_ms = int(ttl) if isinstance(ttl, int | float) and ttl > 0 else 0
            listing.is_public = value.get("cacheScope") == "public"
        cursor = value.get("nextCursor")
        if not isinstance(cursor, str) or len(listing.items) >= MAX_ITEMS:
            break
    listing.good_until = _good_until(listing, declared, connection)
    return listing


def _good_until(listing: Listing, declared: dict[str, Any], connection: Connection) -> float:
    if declared.get("listChanged") and connection.hears_changes:
        return float("inf")
    if connection.era == "modern":
        return time.monotonic() + listing.ttl_ms / 1000
    return time.monotonic() + UNANNOUNCED_TTL_S
