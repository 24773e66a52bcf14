"""The catalog that comes with Sandgate, read once: that takes longer than most tests."""

from __future__ import annotations

import functools

from app.catalog import Catalog
from app.catalog.merging import SHIPPED, Entry
from app.settings import ROOT

SHIPPED_SERVERS = ROOT / "catalog" / "servers"


@functools.cache
def shipped_entries() -> tuple[Entry, ...]:
    return tuple(Catalog.load(SHIPPED_SERVERS).entries_of(SHIPPED))


def shipped_catalog() -> Catalog:
    """One of one's own."""
    return Catalog(shipped_entries())
