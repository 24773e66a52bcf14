"""Options for a server that nobody has an account for: made-up credentials and settings of the right form."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from app.catalog.definition import ServerDefinition
from app.catalog.manifest_parts import ConfigSchema
from app.catalog.options import SecretOption, options_of, required_properties

CREDENTIAL = "sandgate-stand-in-0123456789abcdef"
_VALUES: Mapping[str, JsonValue] = {
    "string": "example",
    "integer": 1,
    "number": 1,
    "boolean": False,
    "array": ["example"],
    "object": {},
}


def stand_in_options(definition: ServerDefinition) -> dict[str, JsonValue]:
    """Every credential, required or not; settings that have an example or must be given."""
    required = set(required_properties(definition))
    options: dict[str, JsonValue] = {}
    for option in options_of(definition):
        if isinstance(option, SecretOption):
            options[option.name] = option.secret.example or CREDENTIAL
        elif option.schema.example is not None or option.name in required:
            options[option.name] = _setting(option.schema)
    return options


def required_stand_ins(definition: ServerDefinition) -> dict[str, JsonValue]:
    """Those of them that no caller can leave out."""
    required = set(required_properties(definition))
    return {name: value for name, value in stand_in_options(definition).items() if name in required}


def _setting(schema: ConfigSchema) -> JsonValue:
    if schema.example is not None:
        return schema.example
    if schema.enum:
        return schema.enum[0]
    return schema.minimum if schema.minimum is not None else _VALUES[schema.type]
