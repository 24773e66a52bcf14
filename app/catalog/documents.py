"""Text of others as plain data: YAML, JSON, and JSON with comments, without what surprises or never ends. Pure."""

from __future__ import annotations

import re
from typing import Any

import orjson
import yaml

from app.catalog.errors import CatalogError

MAX_DOCUMENT_BYTES = 8 * 1024 * 1024
_MOST_NODES = 1_000_000
_DEEPEST = 100
_COMMENT = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])', re.DOTALL)


def load_yaml(text: str | bytes) -> Any:
    """A key written twice is an error; dates and the like stay text. Raises: yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def parse_document(text: bytes, *, origin: str) -> object:
    """A document from elsewhere; `origin` is what errors call it. Raises: CatalogError."""
    if len(text) > MAX_DOCUMENT_BYTES:
        raise CatalogError([f"{origin}: is larger than {MAX_DOCUMENT_BYTES // 1024 // 1024} MiB"])
    try:
        document = _parse(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CatalogError([f"{origin}: is neither YAML nor JSON: {_in_one_line(error)}"]) from error
    _check_size(document, origin)
    return document


def _parse(text: bytes) -> object:
    if not text.lstrip().startswith((b"{", b"[", b"//", b"/*")):
        return load_yaml(text)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        # VS Code's mcp.json has comments and trailing commas.
        plain = _COMMENT.sub(lambda match: match.group(1) or " ", text.decode())
        plain = _TRAILING_COMMA.sub(lambda match: match.group(1) or "", plain)
    try:
        return orjson.loads(plain)
    except orjson.JSONDecodeError:
        return load_yaml(text)


def _check_size(document: object, origin: str) -> None:
    """Refuse what a few lines of YAML aliases can grow to. Raises: CatalogError."""
    nodes = 0
    level = [document]
    too_much = CatalogError([f"{origin}: has more than {_MOST_NODES} values, or nests them more than {_DEEPEST} deep"])
    for _ in range(_DEEPEST):
        below: list[object] = []
        for node in level:
            inner = _inside(node)
            nodes += len(inner)
            if nodes > _MOST_NODES:
                raise too_much
            below += inner
        if not below:
            return
        level = below
    raise too_much


def _inside(node: object) -> list[object]:
    match node:
        case dict():
            return list(node.values())
        case list():
            return node
        case _:
            return []


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


class _Loader(yaml.CSafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    "while reading a mapping", node.start_mark, f"found {key.value!r} twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
