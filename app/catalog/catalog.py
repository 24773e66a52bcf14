"""All servers that can be named in `mcp`, read from directories of manifests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml
from pydantic import ValidationError

from app.catalog import names
from app.catalog.definition import ServerDefinition
from app.catalog.documents import load_yaml
from app.catalog.errors import CatalogError, problems_of


@dataclass(frozen=True, slots=True)
class Entry:
    definition: ServerDefinition
    origin: Path
    """The file it was read from."""
    replaces: Path | None = None
    """The file of the definition with the same name that it took the place of."""


class Catalog:
    """Definitions by key, in the order of their keys. Never changes once loaded."""

    def __init__(self, entries: list[Entry]) -> None:
        """Raises: CatalogError if two entries claim one key or alias."""
        self._entries = {entry.definition.key: entry for entry in sorted(entries, key=lambda e: e.definition.key)}
        self._by_name = _index(entries)

    @classmethod
    def load(cls, *directories: Path) -> Self:
        """Read every `*.yaml` of the directories, in order; a later definition replaces an earlier one of its name.

        The first directory must exist, the others may be absent. Raises: CatalogError.
        """
        problems: list[str] = []
        entries: dict[str, Entry] = {}
        for position, directory in enumerate(directories):
            if position == 0 and not directory.is_dir():
                problems.append(f"{directory}: is no directory")
            here: dict[str, Path] = {}
            for file in sorted(directory.glob("*.yaml")):
                try:
                    definition = read_manifest(file)
                except CatalogError as error:
                    problems += error.problems
                    continue
                if (other := here.setdefault(definition.name, file)) is not file:
                    problems.append(f"{file}: {definition.name}: name: {other.name} defines it already")
                    continue
                replaced = entries.get(definition.name)
                entries[definition.name] = Entry(definition, file, replaced.origin if replaced else None)
        if problems:
            raise CatalogError(problems)
        return cls(list(entries.values()))

    def find(self, key: str) -> ServerDefinition | None:
        """By key, alias or catalog name, exactly as written."""
        entry = self._by_name.get(key)
        return entry.definition if entry else None

    def entry(self, key: str) -> Entry | None:
        """Where the definition came from, and what it replaced."""
        return self._by_name.get(key)

    def nearest(self, key: str) -> str | None:
        """The key to offer to someone who wrote `key`; None if nothing is like it."""
        name = names.nearest(key, self._by_name)
        return self._by_name[name].definition.key if name else None

    def __iter__(self) -> Iterator[ServerDefinition]:
        return (entry.definition for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)


def read_manifest(file: Path) -> ServerDefinition:
    """Raises: CatalogError with everything that is wrong in the file."""
    try:
        return parse_manifest(file.read_bytes(), origin=str(file))
    except OSError as error:
        raise CatalogError([f"{file}: {error.strerror}"]) from error


def parse_manifest(text: str | bytes, *, origin: str) -> ServerDefinition:
    """A definition from YAML or JSON text; `origin` is what errors call the text. Raises: CatalogError."""
    try:
        document = load_yaml(text)
    except yaml.YAMLError as error:
        raise CatalogError([f"{origin}: {error}"]) from error
    try:
        return ServerDefinition.model_validate(document)
    except ValidationError as error:
        name = document.get("name") if isinstance(document, dict) else None
        where = f"{origin}: {name or '(no name)'}"
        problems = [f"{where}: {field}: {what}" if field else f"{where}: {what}" for field, what in problems_of(error)]
        raise CatalogError(problems) from error


def _index(entries: list[Entry]) -> dict[str, Entry]:
    """Every name an entry goes by. Catalog names give way to the keys and aliases of others."""
    found: dict[str, Entry] = {}
    problems: list[str] = []
    for entry in entries:
        definition = entry.definition
        for name in dict.fromkeys((definition.key, *definition.aliases)):
            if (other := found.setdefault(name, entry)) is not entry:
                taken = f"{name} is taken by {other.definition.name} ({other.origin}); state another `key`"
                problems.append(f"{entry.origin}: {definition.name}: key: {taken}")  # noqa: PERF401 - the condition claims the name
    if problems:
        raise CatalogError(problems)
    for entry in entries:
        found.setdefault(entry.definition.name, entry)
    return found
