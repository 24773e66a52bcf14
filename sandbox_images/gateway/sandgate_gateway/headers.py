"""Request headers that repeat what the body says, as 2026-07-28 wants them (SEP-2243). Pure.

The rules of basic/transports ("Standard headers", "Custom headers") as the official SDK applies them.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from sandgate_gateway.jsonrpc import RpcError
from sandgate_gateway.protocol import HEADER_MISMATCH, NAME_PARAMETER

ANNOTATION = "x-mcp-header"
_NEEDLE = b'"x-mcp-header"'
PARAM_PREFIX = "mcp-param-"
ROUTING_HEADERS = ("mcp-protocol-version", "mcp-method", "mcp-name")

_SENTINEL = re.compile(r"^=\?base64\?(.*)\?=$")
_PRINTABLE = re.compile(r"^[\x20-\x7E]*$")
_TOKEN = re.compile(r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$")
_DECIMAL = re.compile(r"^(-?[0-9]+)(?:\.0+)?$")

_ONE_SCHEMA = frozenset(
    {
        "items",
        "contains",
        "unevaluatedItems",
        "additionalProperties",
        "propertyNames",
        "unevaluatedProperties",
        "not",
        "if",
        "then",
        "else",
        "contentSchema",
    }
)
_SCHEMA_LIST = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_SCHEMA_MAP = frozenset({"patternProperties", "dependentSchemas", "$defs", "definitions"})


def encode_value(value: str) -> str:
    """A header value as it is, or in the base64 sentinel if it would not survive a header field."""
    if _PRINTABLE.match(value) and value == value.strip() and not _SENTINEL.match(value):
        return value
    return f"=?base64?{base64.b64encode(value.encode()).decode()}?="


def decode_value(value: str | None) -> str | None:
    """The inverse; None for a sentinel that is broken or not canonical, so that it never equals a body value."""
    if value is None or not (sentinel := _SENTINEL.match(value)):
        return value
    try:
        decoded = base64.b64decode(sentinel[1], validate=True)
        return decoded.decode() if base64.b64encode(decoded).decode() == sentinel[1] else None
    except (binascii.Error, UnicodeDecodeError):
        return None


class Annotations:
    """The `x-mcp-header` annotations of one tool's input schema."""

    def __init__(self, schema: Any) -> None:
        self.problem: str | None = None
        """Why clients must drop the tool; None if its annotations are valid, or it has none."""
        self.arguments: tuple[tuple[tuple[str, ...], str, Any], ...] = ()
        """Path to the argument, header without its prefix, JSON type; empty where there is a problem."""
        # Most schemas have none: looking for the word is a hundred times faster than the walk.
        try:
            has_any = schema and _NEEDLE in orjson.dumps(schema)
        except TypeError:
            self.problem = "its schema is nested too deep"
            return
        if has_any:
            self.problem = _invalid_annotation(schema)
            if self.problem is None:
                self.arguments = tuple(_annotations(schema))


NO_ANNOTATIONS = Annotations(None)


def request_headers(
    method: str, params: Mapping[str, Any], version: str, annotations: Annotations = NO_ANNOTATIONS
) -> dict[str, str]:
    """The headers of one modern request; `annotations` are those of the tool it calls."""
    headers = {"MCP-Protocol-Version": version, "Mcp-Method": method}
    name = params.get(NAME_PARAMETER.get(method, ""))
    if isinstance(name, str):
        headers["Mcp-Name"] = encode_value(name)
    arguments = params.get("arguments")
    if isinstance(arguments, dict):
        for path, token, _ in annotations.arguments:
            rendered = _render(_at(arguments, path))
            if rendered is not None:
                headers[f"Mcp-Param-{token}"] = encode_value(rendered)
    return headers


def check_routing_headers(headers: Mapping[str, str], method: str, params: Mapping[str, Any]) -> None:
    """Mcp-Method and Mcp-Name must say what the body says. Raises: RpcError."""
    if headers.get("mcp-method") != method:
        raise RpcError(HEADER_MISMATCH, "the Mcp-Method header does not match the method of the request")
    key = NAME_PARAMETER.get(method)
    value = params.get(key) if key else None
    if value is not None and decode_value(headers.get("mcp-name")) != value:
        raise RpcError(HEADER_MISMATCH, f"the Mcp-Name header does not match the parameter {key!r} of the request")


def check_param_headers(
    headers: Mapping[str, str], duplicated: frozenset[str], annotations: Annotations, arguments: Any
) -> None:
    """Each annotated argument and its Mcp-Param header are both there and equal, or both absent. Raises: RpcError.

    A schema with an invalid annotation checks nothing: clients drop such a tool and send no headers for it.
    """
    arguments = arguments if isinstance(arguments, dict) else {}
    for path, token, kind in annotations.arguments:
        name = f"Mcp-Param-{token}"
        header = headers.get(name.lower())
        value = _at(arguments, path)
        rendered = _render(value)
        if name.lower() in duplicated:
            raise RpcError(HEADER_MISMATCH, f"the {name} header appears more than once")
        if header is None and rendered is None:
            continue
        if header is None or rendered is None:
            absent = "header" if header is None else "argument"
            raise RpcError(HEADER_MISMATCH, f"the {name} header and the argument differ: the {absent} is absent")
        decoded = decode_value(header)
        if decoded is None or not _equal(kind, value, rendered, decoded):
            raise RpcError(HEADER_MISMATCH, f"the {name} header does not match the argument {'.'.join(path)!r}")


def _invalid_annotation(schema: Any) -> str | None:
    seen: set[str] = set()
    for path, position in _positions(schema):
        if ANNOTATION not in position:
            continue
        token = position[ANNOTATION]
        if not path:
            return "an annotation is not reachable through properties alone"
        if not isinstance(token, str) or not _TOKEN.match(token):
            return "an annotation is not a header token"
        if position.get("type") not in ("string", "integer", "boolean"):
            return "an annotated property is not a string, integer or boolean"
        if token.lower() in seen:
            return "two annotations use the same header"
        seen.add(token.lower())
    return None


def _annotations(schema: Any) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    for path, position in _positions(schema):
        token = position.get(ANNOTATION)
        if path and isinstance(token, str):
            yield path, token, position.get("type")


def _positions(root: Any) -> Iterator[tuple[tuple[str, ...] | None, dict[str, Any]]]:
    """Every schema within a JSON Schema 2020-12, with its path where that goes through `properties` alone. Never
    follows `$ref`, so it ends on any finite value; keeps its own stack, so depth does not matter."""
    stack: list[tuple[tuple[str, ...] | None, Any]] = [((), root)]
    while stack:
        path, node = stack.pop()
        if not isinstance(node, dict):
            continue
        yield path, node
        for keyword, value in node.items():
            if keyword == "properties" and isinstance(value, dict):
                stack.extend(((*path, name) if path is not None else None, sub) for name, sub in value.items())
            elif keyword in _ONE_SCHEMA:
                stack.append((None, value))
            elif keyword in _SCHEMA_LIST and isinstance(value, list):
                stack.extend((None, sub) for sub in value)
            elif keyword in _SCHEMA_MAP and isinstance(value, dict):
                stack.extend((None, sub) for sub in value.values())


def _at(arguments: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if not isinstance(arguments, dict):
            return None
        arguments = arguments.get(key)
    return arguments


def _render(value: Any) -> str | None:
    """An argument as a header carries it; None for what has no such form."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None


def _equal(kind: Any, value: Any, rendered: str, decoded: str) -> bool:
    """Integers are compared as numbers: 42 equals 42.0 (the specification's SHOULD)."""
    if kind == "integer" and not isinstance(value, bool) and isinstance(value, int | float):
        number = _DECIMAL.match(decoded)
        return number is not None and float(value).is_integer() and int(number[1]) == int(value)
    return decoded == rendered
