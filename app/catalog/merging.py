"""Several catalogs as one: which definition of a name counts, and who gets a key that two claim. Pure.

Precedence, highest first: the operator's own files; imported catalogs that were told to override; the servers that are
shipped; other imported catalogs. Of imported catalogs the later one wins. So an import adds servers, and changes what a
working key does only if the operator said so: shipped servers are verified and run from pinned packages, while the same
name in a published catalog is often an image that wants paths of the host.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.catalog import names
from app.catalog.definition import ServerDefinition
from app.catalog.errors import CatalogError

SHIPPED = "shipped"
OWN = "own"


@dataclass(frozen=True, slots=True)
class Entry:
    definition: ServerDefinition
    origin: Path | str
    """The file or URL it was read from."""
    source: str = OWN
    """`shipped`, `own`, or the name of an imported catalog."""
    replaces: Path | str | None = None
    """The origin of the definition with the same name that it took the place of."""


@dataclass(frozen=True, slots=True)
class ImportedCatalog:
    name: str
    origin: str
    overrides: bool
    definitions: tuple[ServerDefinition, ...]


@dataclass(frozen=True, slots=True)
class Shadowed:
    """A definition of an imported catalog whose name a definition of higher precedence has."""

    name: str
    source: str
    by: str


@dataclass(frozen=True, slots=True)
class Merged:
    entries: dict[str, Entry]
    """By key, in the order of the keys."""
    by_name: dict[str, Entry]
    """By every name an entry goes by. Catalog names give way to the keys and aliases of others."""
    shadowed: tuple[Shadowed, ...]


def merge(files: Sequence[Entry], imported: Sequence[ImportedCatalog]) -> Merged:
    """`imported` is in the order of import. Raises: CatalogError if two of the files claim one key or alias."""
    _check_files(files)
    winners: dict[str, Entry] = {}
    shadowed: list[Shadowed] = []
    for entry in _by_precedence(files, imported):
        winner = winners.setdefault(entry.definition.name, entry)
        if winner is entry:
            continue
        if winner.replaces is None:
            winners[entry.definition.name] = replace(winner, replaces=entry.origin)
        if entry.source not in (SHIPPED, OWN):
            shadowed.append(Shadowed(entry.definition.name, entry.source, winner.source))
    claimed: dict[str, Entry] = {}
    catalog_names: set[str] = set()
    entries: dict[str, Entry] = {}
    free_numbers: dict[str, int] = {}
    for entry in winners.values():
        # Between files, keys and aliases go before names. An import takes no name that leads to a server already.
        taken = (claimed,) if entry.source in (SHIPPED, OWN) else (claimed, catalog_names)
        entry = _with_free_names(entry, taken, free_numbers)
        entries[entry.definition.key] = entry
        claimed |= dict.fromkeys((entry.definition.key, *entry.definition.aliases), entry)
        catalog_names.add(entry.definition.name)
    by_name = {entry.definition.name: entry for entry in entries.values()} | claimed
    return Merged(dict(sorted(entries.items())), by_name, tuple(shadowed))


def _by_precedence(files: Sequence[Entry], imported: Sequence[ImportedCatalog]) -> Iterator[Entry]:
    yield from (entry for entry in files if entry.source == OWN)
    yield from _entries_of([catalog for catalog in imported if catalog.overrides])
    yield from (entry for entry in files if entry.source == SHIPPED)
    yield from _entries_of([catalog for catalog in imported if not catalog.overrides])


def _entries_of(catalogs: Sequence[ImportedCatalog]) -> Iterator[Entry]:
    for catalog in reversed(catalogs):
        known = [definition for definition in catalog.definitions if names.owns_its_key(definition.name)]
        others = [definition for definition in catalog.definitions if not names.owns_its_key(definition.name)]
        yield from (Entry(definition, catalog.origin, catalog.name) for definition in (*known, *others))


def _with_free_names(entry: Entry, taken: Sequence[Container[str]], free_numbers: dict[str, int]) -> Entry:
    """The entry under a key that nobody has, without the aliases that others have.

    `free_numbers` holds for a key the number from which on `<key><number>` may be free.
    """

    def is_free(name: str) -> bool:
        return not any(name in others for others in taken)

    definition = entry.definition
    keys = (definition.key, *names.other_keys(definition.name, definition.homepage, definition.type == "remote"))
    key = next(filter(is_free, keys), None)
    if key is None:
        numbers = itertools.count(free_numbers.get(keys[0], 2))
        number = next(number for number in numbers if is_free(f"{keys[0]}{number}"))
        key, free_numbers[keys[0]] = f"{keys[0]}{number}", number + 1
    aliases = tuple(filter(is_free, definition.aliases))
    if key == definition.key and aliases == definition.aliases:
        return entry
    return replace(entry, definition=definition.model_copy(update={"stated_key": key, "aliases": aliases}))


def _check_files(files: Sequence[Entry]) -> None:
    """Files can be corrected, so a clash between them is no guess but an error."""
    found: dict[str, Entry] = {}
    problems: list[str] = []
    for entry in files:
        definition = entry.definition
        for name in dict.fromkeys((definition.key, *definition.aliases)):
            if (other := found.setdefault(name, entry)) is not entry:
                taken = f"{name} is taken by {other.definition.name} ({other.origin}); state another `key`"
                problems.append(f"{entry.origin}: {definition.name}: key: {taken}")  # noqa: PERF401 - the condition claims the name
    if problems:
        raise CatalogError(problems)
