"""Typed access to the fields of a decoded JSON message: absent and null fields have their zero value.

A field is asked for by its JSON name; its protocol buffer name is accepted too. All raise InvalidArgument, naming the
field.
"""

import re
from collections.abc import Mapping
from typing import Any

from sandgate_agent.errors import InvalidArgument


def _field(message: Mapping[str, Any], name: str) -> Any:
    value = message.get(name)
    if value is None:
        value = message.get(re.sub("([A-Z])", lambda match: f"_{match[1].lower()}", name))
    return value


def optional_text(message: Mapping[str, Any], name: str) -> str | None:
    value = _field(message, name)
    if value is not None and not isinstance(value, str):
        raise InvalidArgument(f"{name} must be a string")
    return value


def text(message: Mapping[str, Any], name: str) -> str:
    return optional_text(message, name) or ""


def boolean(message: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = _field(message, name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidArgument(f"{name} must be true or false")
    return value


def integer(message: Mapping[str, Any], name: str) -> int:
    """Accepts a number in a string, as the JSON form of 64-bit fields has it."""
    value = _field(message, name)
    if value is None:
        return 0
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value):
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(f"{name} must be a whole number")
    return value


def message_field(message: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    value = _field(message, name)
    if value is not None and not isinstance(value, dict):
        raise InvalidArgument(f"{name} must be an object")
    return value


def string_list(message: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = _field(message, name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidArgument(f"{name} must be a list of strings")
    return tuple(value)


def check_environment(variables: Mapping[str, str]) -> None:
    """Raises: InvalidArgument for what no process can be given (execve(2))."""
    if any("\0" in text for pair in variables.items() for text in pair):
        raise InvalidArgument("an environment variable may not contain a NUL character")
    if any("=" in name or not name for name in variables):
        raise InvalidArgument("the name of an environment variable may not be empty or contain '='")


def string_map(message: Mapping[str, Any], name: str) -> dict[str, str]:
    value = _field(message, name) or {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise InvalidArgument(f"{name} must map names to strings")
    return value
