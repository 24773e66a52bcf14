"""JSON Schemas that strangers wrote. Checking by one asks no network and takes bounded time, whatever is in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from jsonschema_rs import Draft202012Validator, FancyRegexOptions, ValidationError
from pydantic import JsonValue

_MOST_BACKTRACKING = 100_000
"""Steps, some tenths of a second at most: a pattern like `(a+)+(?=b)` could hold the process for years."""
_DEEPEST = 500
"""Levels of a value. The library follows them on the stack of the process, which some ten thousand would end."""
_LONGEST_FAULT = 300
"""Characters; the library repeats what is wrong."""


class SchemaError(ValueError):
    """It is no JSON Schema, or refers to something outside of itself."""


class UncheckableError(ValueError):
    """The value is not what JSON can be."""


def make_validator(schema: Mapping[str, JsonValue]) -> Draft202012Validator:
    """Raises: SchemaError."""
    try:
        return Draft202012Validator(
            dict(schema),
            retriever=_refuse_to_retrieve,
            pattern_options=FancyRegexOptions(backtrack_limit=_MOST_BACKTRACKING),
        )
    except ValidationError as error:
        raise SchemaError(f"{path_of(error)}: {shortened(error.message)}") from error
    except ValueError as error:  # too deep, or with text that is none
        raise SchemaError(shortened(str(error))) from error


def faults_in(value: JsonValue, schema: Mapping[str, JsonValue]) -> Iterator[ValidationError]:
    """What of a value breaks a schema. Raises: SchemaError, UncheckableError."""
    validator = make_validator(schema)
    if _is_deeper_than(_DEEPEST, value):
        raise UncheckableError("nests too deep")
    try:
        yield from validator.iter_errors(value)
    except UnicodeEncodeError as error:
        raise UncheckableError("holds half of a surrogate pair, so it is no text") from error


def path_of(error: ValidationError) -> str:
    """Where in the value it is, as in `$.files[0].name`."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path)
    return "$" + "".join(steps)


def shortened(text: str) -> str:
    """Its beginning and its end: a fault begins with the value and ends with the rule that it breaks."""
    half = _LONGEST_FAULT // 2
    return text if len(text) <= _LONGEST_FAULT else f"{text[:half]}…{text[-half:]}"


def _refuse_to_retrieve(uri: str) -> JsonValue:
    raise LookupError(f"{uri} is not in it")


def _is_deeper_than(levels: int, value: JsonValue) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [inner for outer in layer for inner in _inside(outer)]
        if not layer:
            return False
    return True


def _inside(value: JsonValue) -> Iterable[JsonValue]:
    match value:
        case dict():
            return value.values()
        case list():
            return value
        case _:
            return ()
