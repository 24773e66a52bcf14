"""Reading fields of a configuration: each function returns a value of its type or says what the field must be."""

from collections.abc import Mapping
from typing import Any


class ConfigurationError(Exception):
    """The body of `PUT /config` is not a configuration; the message names the field, never its value."""


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where} must be an object")
    return value


def list_of_any(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigurationError(f"{where} must be a list")
    return value


def objects(value: Any, where: str) -> list[dict[str, Any]]:
    entries = list_of_any(value, where)
    if not all(isinstance(entry, dict) for entry in entries):
        raise ConfigurationError(f"{where} must be a list of objects")
    return entries


def strings(value: Any, where: str) -> tuple[str, ...]:
    entries = list_of_any(value, where)
    if not all(isinstance(entry, str) for entry in entries):
        raise ConfigurationError(f"{where} must be a list of strings")
    return tuple(entries)


def string(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{where} must be a string that is not empty")
    return value


def optional_string(value: Any, where: str) -> str | None:
    return None if value is None else string(value, where)


def string_map(value: Any, where: str) -> Mapping[str, str]:
    """Absent means empty."""
    entries = mapping({} if value is None else value, where)
    if not all(isinstance(entry, str) for entry in entries.values()):
        raise ConfigurationError(f"{where} must map names to strings")
    return dict(entries)


def boolean(value: Any, where: str) -> bool:
    """Absent means false."""
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ConfigurationError(f"{where} must be true or false")
    return value


def one_of(value: Any, choices: tuple[str, ...], where: str) -> Any:
    if value not in choices:
        named = " or ".join(f'"{choice}"' for choice in choices)
        raise ConfigurationError(f"{where} must be {named}")
    return value
