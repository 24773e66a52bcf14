"""All servers that can be named in `mcp`: from directories of manifests, and from imported catalogs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml
from pydantic import ValidationError

from app.catalog import names
from app.catalog.definition import ServerDefinition
from app.catalog.documents import load_yaml
from app.catalog.errors import CatalogError, problems_of
from app.catalog.merging import OWN, SHIPPED, Entry, ImportedCatalog, Merged, Shadowed, merge
from app.catalog.search import SearchIndex, Tool


class Catalog:
    """Definitions by key, in the order of their keys.

    Files are read once. Imported catalogs are replaced all at once, so that nobody sees half of a change; a plan that
    was made before keeps what it took.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        """Raises: CatalogError if two entries claim one key or alias."""
        self._files = tuple(entries)
        self._tools: dict[str, tuple[Tool, ...]] = {}
        self._indexing = threading.Lock()
        self._state = _State(merge(self._files, ()))

    @classmethod
    def load(cls, *directories: Path) -> Self:
        """Read every `*.yaml` of the directories: the shipped one, then the operator's own, which replace it by name.

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
                source = SHIPPED if position == 0 else OWN
                entries[definition.name] = Entry(definition, file, source, replaced.origin if replaced else None)
        if problems:
            raise CatalogError(problems)
        return cls(list(entries.values()))

    def adopt(self, imported: Sequence[ImportedCatalog]) -> None:
        """Put these in the place of everything imported before. Safe to repeat."""
        self._state = _State(merge(self._files, imported))

    def remember_tools(self, key: str, tools: Iterable[Tool]) -> None:
        """Let `search` find the server by tools that it was seen to have."""
        with self._indexing:
            self._tools[key] = tuple(tools)
            if (index := self._state.index) is not None:
                index.set_tools(key, self._tools[key])

    def find(self, key: str) -> ServerDefinition | None:
        """By key, alias or catalog name, exactly as written."""
        entry = self.entry(key)
        return entry.definition if entry else None

    def entry(self, key: str) -> Entry | None:
        """Where the definition came from, and what it replaced."""
        return self._state.merged.by_name.get(key)

    def entries_of(self, source: str) -> Iterator[Entry]:
        """Those that are `shipped`, the operator's `own`, or of the imported catalog of that name."""
        return (entry for entry in self._state.merged.entries.values() if entry.source == source)

    def nearest(self, key: str) -> str | None:
        """The key to offer to someone who wrote `key`; None if nothing is like it."""
        return next(iter(self.nearest_few(key)), None)

    def nearest_few(self, key: str) -> list[str]:
        """At most three keys to offer to someone who wrote `key`, the most alike first."""
        by_name = self._state.merged.by_name
        return list(dict.fromkeys(by_name[name].definition.key for name in names.nearest_few(key, by_name, 3)))

    def search(self, query: str) -> list[ServerDefinition]:
        """What matches the words of the query or begins with them, the best first. For any thread."""
        state = self._state
        with self._indexing:
            if state.index is None:
                index = SearchIndex(entry.definition for entry in state.merged.entries.values())
                for key, tools in self._tools.items():
                    index.set_tools(key, tools)
                state.index = index
        return [state.merged.entries[key].definition for key in state.index.search(query)]

    @property
    def shadowed(self) -> tuple[Shadowed, ...]:
        """What imported catalogs define and is not used, because the name is taken."""
        return self._state.merged.shadowed

    def __iter__(self) -> Iterator[ServerDefinition]:
        return (entry.definition for entry in self._state.merged.entries.values())

    def __len__(self) -> int:
        return len(self._state.merged.entries)


@dataclass(slots=True)
class _State:
    merged: Merged
    index: SearchIndex | None = None
    """Made by the first search: most starts never need it."""


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
