"""A manifest of Sandgate's own format, by itself."""

from __future__ import annotations

from collections.abc import Mapping

from app.catalog.formats.reading import Manifest, entry_of


def recognises(document: object) -> bool:
    """What only this format has: a package, or a configuration that is one schema and no list."""
    return (
        isinstance(document, Mapping)
        and isinstance(document.get("name"), str)
        and "type" in document
        and (isinstance(document.get("package"), Mapping) or isinstance(document.get("config"), Mapping))
    )


def manifest_of(_entry: str, value: object) -> Manifest:
    """Raises: RefusedError."""
    return {str(field): item for field, item in entry_of(value).items()} | {"verified": False}
