"""One value that a caller gave, as the type its schema asks for.

No message here holds a value, nor a name inside a free-form one: any of them may be a credential in the wrong place.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

from pydantic import JsonValue

from app.catalog.errors import OptionError
from app.catalog.manifest_parts import ConfigSchema

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,2})?")
_DEEPEST = 32
_EXPECTED = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
}


def read_value(server: str, property: str, schema: ConfigSchema, value: object) -> JsonValue:
    """`value` as the schema's type. Numbers and booleans may be written as text, and the other way round.

    Raises: OptionError.
    """
    match schema.type, value:
        case "string", str():
            return read_text(server, property, value)
        case "string", bool() | int() | float():
            return json.dumps(value)
        case "boolean", bool():
            return value
        case "boolean", str() if value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true"
        case "integer" | "number", int() if not isinstance(value, bool):
            return value
        case "integer", float() if value.is_integer():
            return int(value)
        case "integer", str() if _INTEGER.fullmatch(value.strip()):
            return int(value)
        case "number", float() if math.isfinite(value):
            return value
        case "number", str() if _NUMBER.fullmatch(value.strip()):
            return float(value)
        case "array", list() | tuple():
            items = enumerate(value)
            if (of := schema.items) is None:
                return [_read_free(server, f"{property}[{index}]", item) for index, item in items]
            return [read_value(server, f"{property}[{index}]", of, item) for index, item in items]
        case "object", Mapping():
            return _read_object(server, property, schema.properties or {}, value)
    raise OptionError(server, property, f"expected {_expected(schema)}, got {kind_of(value)}")


def _read_object(
    server: str, property: str, properties: Mapping[str, ConfigSchema], value: Mapping[object, object]
) -> dict[str, JsonValue]:
    result: dict[str, JsonValue] = {}
    for name, item in value.items():
        text = read_text(server, property, str(name))
        if (known := properties.get(text)) is not None:
            result[text] = read_value(server, f"{property}.{text}", known, item)
        else:
            result[text] = _read_free(server, property, item)
    return result


def _read_free(server: str, property: str, value: object, depth: int = 0) -> JsonValue:
    """A value without a schema. The names inside are the caller's as well, so errors do not show them."""
    if depth > _DEEPEST:
        raise OptionError(server, property, f"nests more than {_DEEPEST} levels")
    match value:
        case str():
            return read_text(server, property, value)
        case None | bool() | int() | float():
            return value
        case list() | tuple():
            return [_read_free(server, property, item, depth + 1) for item in value]
        case Mapping():
            return {
                read_text(server, property, str(name)): _read_free(server, property, item, depth + 1)
                for name, item in value.items()
            }
    raise OptionError(server, property, f"holds {kind_of(value)}, which is no JSON")


def read_text(server: str, property: str, text: str) -> str:
    """Refuse what can be in no argument, environment or header. Raises: OptionError."""
    if "\0" in text:
        raise OptionError(server, property, "holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OptionError(server, property, "holds half of a surrogate pair, so it is no text") from None
    return text


def _expected(schema: ConfigSchema) -> str:
    expected = _EXPECTED[schema.type]
    return f"{expected} of {schema.items.type}s" if schema.type == "array" and schema.items else expected


def kind_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "an object"
        case _:
            return "something else"
