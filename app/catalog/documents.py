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
_MOST_MERGED = 10_000
"""Keys that `<<` brings into the mappings of a document."""
_LARGEST_INTEGER = 2**63
_STRING = r'("(?:\\.|[^"\\]|\\\Z)*+(?:"|\Z))'
"""One that does not end goes to the end of the text: to look for it from each quote again would take for ever."""
_COMMENT = re.compile(_STRING + r"|//[^\n]*|/\*(?:[^*]|\*(?!/))*+(?:\*/|\Z)", re.DOTALL)
_TRAILING_COMMA = re.compile(_STRING + r"|,(?=\s*[}\]])", re.DOTALL)


def load_yaml(text: str | bytes) -> Any:
    """A key written twice is an error; dates and the like stay text. Raises: yaml.YAMLError."""
    try:
        _check_depth(text)
        return yaml.load(text, Loader=_Loader)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # What PyYAML's constructors raise for a value that is not of the type its tag or its look promises.
        raise yaml.YAMLError(f"a value cannot be read: {_in_one_line(error)}") from error


def parse_document(text: bytes, *, origin: str) -> object:
    """A document from elsewhere; `origin` is what errors call it. Raises: CatalogError."""
    if len(text) > MAX_DOCUMENT_BYTES:
        raise CatalogError([f"{origin}: is larger than {MAX_DOCUMENT_BYTES // 1024 // 1024} MiB"])
    try:
        document = _parse(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
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


def _check_depth(text: str | bytes) -> None:
    """Libyaml follows what is nested on the stack of the process, which some ten thousand levels would end."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST:
                raise yaml.YAMLError(f"nests values more than {_DEEPEST} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


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
    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._merged = 0

    def flatten_mapping(self, node: Any) -> None:
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                continue
            for inner in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(inner, yaml.MappingNode):
                    self.flatten_mapping(inner)
                    self._merged += len(inner.value)
                if self._merged > _MOST_MERGED:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"brings more than {_MOST_MERGED} keys into mappings with <<", node.start_mark
                    )
        super().flatten_mapping(node)

    def construct_yaml_int(self, node: Any) -> int:
        value: int = super().construct_yaml_int(node)
        if abs(value) >= _LARGEST_INTEGER:
            raise yaml.constructor.ConstructorError(
                None, None, "found an integer of more than 64 bits", node.start_mark
            )
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    "while reading a mapping", node.start_mark, f"found {key.value!r} twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
