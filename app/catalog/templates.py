"""Templates in definitions, as in Docker's MCP catalog (pkg/eval of github.com/docker/mcp-gateway).

`{{path|function|function:argument}}` takes a value from the server's configuration; the path starts with the server's
name. `$NAME` and `${NAME}` take a variable of this server's environment. What differs from Docker, on purpose:

* braces outside `{{…}}` stay, so JSON with a template inside stays JSON;
* numbers and booleans become text as JSON writes them, lists become comma-separated text where text is needed;
* variables are expanded in the definition's own words only, never in a value that came from a caller;
* an absent value gives no list items, where Docker gives one empty item; `or:[]` turns it into a list;
* an unknown function or a broken template is an error of the definition, where Docker ignores it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pydantic import JsonValue

Context: TypeAlias = Mapping[str, JsonValue]
Variables: TypeAlias = Mapping[str, str]

_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_WINDOWS_PATH = re.compile(r"([A-Za-z]):[\\/](.*)", re.DOTALL)


class TemplateError(ValueError):
    """A template that can never be evaluated. The text names the template, which is part of the definition."""


@dataclass(frozen=True, slots=True)
class Call:
    function: str
    argument: str


@dataclass(frozen=True, slots=True)
class Reference:
    path: tuple[str, ...]
    calls: tuple[Call, ...] = ()

    def __str__(self) -> str:
        return "{{" + ".".join(self.path) + "}}"


def parse(text: str) -> tuple[str | Reference, ...]:
    """Literal pieces and references in order. Raises: TemplateError."""
    parts: list[str | Reference] = []
    position = 0
    while (start := text.find("{{", position)) >= 0 and (end := text.find("}}", start + 2)) >= 0:
        if start > position:
            parts.append(text[position:start])
        parts.append(_parse_reference(text[start + 2 : end]))
        position = end + 2
    if position < len(text):
        parts.append(text[position:])
    return tuple(parts)


def variables_in(text: str) -> Iterator[str]:
    """The names of the variables that `text` expands."""
    for part in parse(text):
        if isinstance(part, str):
            yield from (match.group(1) or match.group(2) for match in _VARIABLE.finditer(part))


def evaluate(text: str, context: Context, variables: Variables | None) -> JsonValue:
    """A template that is one reference keeps the type of its value; anything else is joined as text.

    An unknown path is None, an unknown variable is empty text; without `variables` none is expanded. Raises:
    TemplateError.
    """
    parts = parse(text)
    if len(parts) == 1 and isinstance(parts[0], Reference):
        return _resolve(parts[0], context)
    return "".join(
        _expand(part, variables) if isinstance(part, str) else as_text(_resolve(part, context)) for part in parts
    )


def evaluate_text(text: str, context: Context, variables: Variables | None) -> str:
    return as_text(evaluate(text, context, variables))


def evaluate_items(items: Sequence[str], context: Context, variables: Variables | None) -> tuple[str, ...]:
    """The items of a list field; one that evaluates to a list is spliced in."""
    result: list[str] = []
    for item in items:
        value = evaluate(item, context, variables)
        if isinstance(value, list):
            result.extend(as_text(element) for element in value)
        else:
            result.append(as_text(value))
    return tuple(result)


def as_text(value: JsonValue) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case list():
            return ",".join(as_text(element) for element in value)
        case _:
            return json.dumps(value, ensure_ascii=False)


def _parse_reference(inside: str) -> Reference:
    path, *calls = (piece.strip() for piece in inside.split("|"))
    segments = tuple(path.split("."))
    if not all(segments):
        raise TemplateError(f"{{{{{inside}}}}} holds no path such as server.option")
    return Reference(segments, tuple(_parse_call(call, inside) for call in calls))


def _parse_call(text: str, inside: str) -> Call:
    function, colon, argument = text.partition(":")
    if function not in _FUNCTIONS:
        raise TemplateError(f"{{{{{inside}}}}} calls {function!r}, which is none of {', '.join(sorted(_FUNCTIONS))}")
    if bool(colon) != (function in _TAKES_ARGUMENT):
        raise TemplateError(f"{{{{{inside}}}}}: {function} takes {'no' if colon else 'an'} argument")
    return Call(function, argument)


def _resolve(reference: Reference, context: Context) -> JsonValue:
    value: JsonValue = dict(context)
    for segment in reference.path:
        value = value.get(segment) if isinstance(value, dict) else None
    for call in reference.calls:
        value = _FUNCTIONS[call.function](value, call.argument)
    return value


def _expand(text: str, variables: Variables | None) -> str:
    if variables is None:
        return text
    return _VARIABLE.sub(lambda match: variables.get(match.group(1) or match.group(2), ""), text)


def _volume(value: JsonValue, _: str) -> JsonValue:
    if isinstance(value, list):
        return [_volume(item, "") for item in value]
    path = as_text(value)
    return f"{path}:{_container_path(path)}" if path else ""


def _volume_target(value: JsonValue, _: str) -> JsonValue:
    if isinstance(value, list):
        return [_container_path(as_text(item)) for item in value]
    return _container_path(as_text(value))


def _container_path(path: str) -> str:
    """`C:\\data\\in` is mounted at `/C/data/in`; every other path is mounted where it is."""
    if (match := _WINDOWS_PATH.fullmatch(path)) is None:
        return path
    drive, rest = match.groups()
    return f"/{drive}/{rest}".replace("\\", "/")


def _into(value: JsonValue, _: str) -> JsonValue:
    if value is None:
        return []
    return [as_text(item) for item in value] if isinstance(value, list) else [as_text(value)]


def _first(value: JsonValue, _: str) -> JsonValue:
    return (as_text(value[0]) if value else "") if isinstance(value, list) else value


def _last(value: JsonValue, _: str) -> JsonValue:
    return (as_text(value[-1]) if value else "") if isinstance(value, list) else value


def _or(value: JsonValue, argument: str) -> JsonValue:
    if value not in (None, "", []):
        return value
    if value != "" and argument.startswith("[") and argument.endswith("]"):
        return [item.strip() for item in argument[1:-1].split(",") if item.strip()]
    return argument


def _mount_as(value: JsonValue, argument: str) -> JsonValue:
    path = as_text(_first(value, ""))
    return f"{path}:{argument}" if path else ""


_FUNCTIONS: Mapping[str, Callable[[JsonValue, str], JsonValue]] = {
    "volume": _volume,
    "volume-target": _volume_target,
    "into": _into,
    "first": _first,
    "last": _last,
    "or": _or,
    "mount_as": _mount_as,
}
_TAKES_ARGUMENT = frozenset({"or", "mount_as"})
