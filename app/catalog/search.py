"""Full-text search over the catalog, in memory: SQLite's FTS5, whatever the installation's database is."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from app.catalog.definition import ServerDefinition

_COLUMNS = ("names", "title", "tags", "tools", "description", "tool_descriptions")
_WEIGHTS = (10.0, 8.0, 4.0, 4.0, 2.0, 1.0)
"""A word in the name says more than one in the description (bm25, per column)."""
_QUERY = (
    f"SELECT key FROM servers WHERE servers MATCH ? ORDER BY bm25(servers, 0, {', '.join(map(str, _WEIGHTS))}), key"
)
_WORD = re.compile(r"\w+")
_INNER_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_MOST_WORDS = 16


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str = ""


class SearchIndex:
    """For any thread, one search at a time."""

    def __init__(self, definitions: Iterable[ServerDefinition]) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._database.execute(
            f"CREATE VIRTUAL TABLE servers USING fts5(key UNINDEXED, {', '.join(_COLUMNS)},"
            " tokenize = \"unicode61 remove_diacritics 2\", prefix = '2 3')"
        )
        rows = (_row(definition) for definition in definitions)
        self._database.executemany(f"INSERT INTO servers VALUES (?{', ?' * len(_COLUMNS)})", rows)

    def set_tools(self, key: str, tools: Iterable[Tool]) -> None:
        """Put these in the place of the tools known so far."""
        listed = list(tools)
        with self._lock:
            self._database.execute(
                "UPDATE servers SET tools = ?, tool_descriptions = ? WHERE key = ?",
                (_names(*(tool.name for tool in listed)), " ".join(tool.description for tool in listed), key),
            )

    def search(self, query: str) -> list[str]:
        """Keys, the best first: servers that have all words, or else those that have any. Words match as prefixes."""
        written, parted = (_terms(text) for text in (query, _INNER_CAPITAL.sub(" ", query)))
        if not written:
            return []
        return (
            self._match(" AND ".join(written)) or self._match(" AND ".join(parted)) or self._match(" OR ".join(parted))
        )

    def close(self) -> None:
        self._database.close()

    def _match(self, expression: str) -> list[str]:
        with self._lock:
            return [key for (key,) in self._database.execute(_QUERY, (expression,))]


def _terms(query: str) -> list[str]:
    """Words quoted, so that none of them is a sign of the query language."""
    return [f'"{word}"*' for word in _WORD.findall(query)[:_MOST_WORDS]]


def _row(definition: ServerDefinition) -> tuple[str, ...]:
    tools = [*(Tool(tool.name, tool.description) for tool in definition.tools), *_listed_tools(definition)]
    return (
        definition.key,
        _names(definition.key, definition.name, *definition.aliases),
        definition.title,
        " ".join((definition.category or "", *definition.tags)),
        _names(*(tool.name for tool in tools)),
        definition.description,
        " ".join(tool.description for tool in tools),
    )


def _listed_tools(definition: ServerDefinition) -> Iterable[Tool]:
    """The tools that a published catalog lists for a server."""
    listed = definition.annotations.get("tools")
    for tool in listed if isinstance(listed, list) else []:
        if isinstance(tool, dict) and isinstance(name := tool.get("name"), str):
            yield Tool(name, str(tool.get("description") or ""))


def _names(*written: str) -> str:
    """Names as they are, and their parts: `githubOfficial` is also found by `github official`."""
    return " ".join((*written, *(_INNER_CAPITAL.sub(" ", name).replace("_", " ") for name in written)))
