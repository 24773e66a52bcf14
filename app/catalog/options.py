"""What a caller can set on a server, and reading what a caller gave.

No message here holds a value that came from the caller: any of them may be a credential in the wrong place.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NoReturn, cast

from jsonschema_rs import ValidationError
from pydantic import JsonValue

from app.catalog import names
from app.catalog.definition import CONTEXT_ROOT, Secret, ServerDefinition
from app.catalog.errors import OptionError
from app.catalog.json_schemas import SchemaError, faults_in
from app.catalog.manifest_parts import ConfigSchema
from app.catalog.option_values import kind_of, read_text, read_value


@dataclass(frozen=True, slots=True)
class SecretOption:
    name: str
    """The property."""
    secret: Secret

    @property
    def spellings(self) -> tuple[str, ...]:
        return self.name, self.secret.env, self.secret.name


@dataclass(frozen=True, slots=True)
class ConfigOption:
    name: str
    """The property."""
    path: tuple[str, ...]
    schema: ConfigSchema

    @property
    def spellings(self) -> tuple[str, ...]:
        return self.name, ".".join(self.path)


@dataclass(frozen=True, slots=True)
class Given:
    """What a caller gave, checked and complete."""

    secrets: Mapping[str, str] = field(repr=False)
    """Environment variable -> credential; those left out are absent."""
    config: Mapping[str, JsonValue] = field(repr=False)
    """The server's configuration with its defaults, nested as its schema is."""


def options_of(definition: ServerDefinition) -> tuple[SecretOption | ConfigOption, ...]:
    secrets = (SecretOption(names.secret_property(definition.name, s.env), s) for s in definition.secrets)
    leaves = definition.config.leaves() if definition.config else ()
    return (*secrets, *(ConfigOption(names.config_property(path), path, schema) for path, schema in leaves))


def required_properties(definition: ServerDefinition) -> Iterator[str]:
    """What a caller cannot leave out, whatever else is given."""
    for option in options_of(definition):
        if isinstance(option, SecretOption):
            if option.secret.required:
                yield option.name
        elif option.schema.default is None and definition.config is not None:
            steps = range(len(option.path))
            parents = [definition.config.at(option.path[:depth]) for depth in steps]
            if all(parent and option.path[depth] in (parent.required or ()) for depth, parent in enumerate(parents)):
                yield option.name


def read_options(definition: ServerDefinition, server: str, options: Mapping[str, object], *, home: str) -> Given:
    """Check what a caller gave for `server` and fill in defaults; null counts as not given. Raises: OptionError.

    An option goes by its property name; its path in `config`, or a credential's variable or catalog name, works too.
    """
    offered = options_of(definition)
    known = {spelling: option for option in offered for spelling in option.spellings}
    known |= {option.name: option for option in offered}
    secrets: dict[str, str] = {}
    config: dict[str, JsonValue] = {}
    seen: set[str] = set()
    for name, value in options.items():
        if value is None:
            continue
        option = known.get(name)
        if option is None:
            raise _unknown(server, name, [option.name for option in offered])
        if option.name in seen:
            raise OptionError(server, option.name, "is given twice, under two names")
        seen.add(option.name)
        if isinstance(option, SecretOption):
            secrets[option.secret.env] = _read_secret(server, option, value)
        else:
            _put(config, option.path, read_value(server, option.name, option.schema, value))
    _require_secrets(definition, server, secrets)
    if definition.config is None:
        return Given(secrets, {})
    complete = _with_defaults(definition.config, config, home)
    _check_config(definition.config, server, complete)
    return Given(secrets, complete)


def _read_secret(server: str, option: SecretOption, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise OptionError(server, option.name, f"expected a string, got {kind_of(value)}")
    return read_text(server, option.name, str(value))


def _require_secrets(definition: ServerDefinition, server: str, secrets: dict[str, str]) -> None:
    for secret in definition.secrets:
        if secrets.get(secret.env):
            continue
        secrets.pop(secret.env, None)
        if secret.required:
            where = f" See {definition.homepage}" if definition.homepage else ""
            where = f" Get one at {secret.obtain_at}" if secret.obtain_at else where
            what = f": {secret.description.rstrip('.')}" if secret.description else ""
            property = names.secret_property(definition.name, secret.env)
            raise OptionError(
                server, property, f"this credential is required (${secret.env} of the server{what}).{where}"
            )


def _put(config: dict[str, JsonValue], path: Sequence[str], value: JsonValue) -> None:
    for name in path[:-1]:
        inner = config.setdefault(name, {})
        config = cast(dict[str, JsonValue], inner)  # a leaf of the schema is never on the path to another
    config[path[-1]] = value


def _with_defaults(schema: ConfigSchema, given: Mapping[str, JsonValue], home: str) -> dict[str, JsonValue]:
    """`given` and the defaults of what it lacks. An absent object appears only if its defaults complete it."""
    result = dict(given)
    for name, inner in (schema.properties or {}).items():
        value = result.get(name)
        if inner.properties:
            complete = _with_defaults(inner, value if isinstance(value, dict) else {}, home)
            if value is not None or (complete and complete.keys() >= set(inner.required or ())):
                result[name] = complete
        elif name not in result and inner.default is not None:
            result[name] = default_of(inner, home)
    return result


def default_of(schema: ConfigSchema, home: str) -> JsonValue:
    """The default of a value where a server's own directory is `home`; None if there is none."""
    return _fill_home(schema.default, home)


def _fill_home(default: JsonValue, home: str) -> JsonValue:
    match default:
        case str():
            return default.replace(f"{{{{{CONTEXT_ROOT}.home}}}}", home)
        case list():
            return [_fill_home(item, home) for item in default]
        case dict():
            return {name: _fill_home(item, home) for name, item in default.items()}
        case _:
            return default


def _check_config(schema: ConfigSchema, server: str, config: Mapping[str, JsonValue]) -> None:
    """Raises: OptionError for the first thing that breaks the schema."""
    written: Any = schema.model_dump(by_alias=True, exclude_none=True)
    try:
        # What no JSON can be is refused where each value is read.
        for error in faults_in(dict(config), written):
            _raise_for(schema, server, error, rule=reduce(lambda part, step: part[step], error.schema_path, written))
    except SchemaError as error:
        raise OptionError(server, None, f"`config` of its definition is no JSON Schema: {error}") from error


def _raise_for(schema: ConfigSchema, server: str, error: ValidationError, *, rule: Any) -> NoReturn:
    """`rule` is the value of the keyword that was broken, as the schema has it."""
    named = itertools.takewhile(lambda step: isinstance(step, str), error.instance_path)
    path = tuple(str(step) for step in named)
    index = "".join(f"[{step}]" for step in error.instance_path[len(path) :] if isinstance(step, int))
    keyword = error.kind.name
    if keyword == "required":
        leaf = _required_below(schema, (*path, error.kind.value))[0]
        option = schema.at(leaf)
        what = f" ({option.description.rstrip('.')})" if option and option.description else ""
        raise OptionError(server, names.config_property(leaf), f"is required{what}")
    if keyword == "anyOf":
        leaves = [[_required_below(schema, (*path, name))[0] for name in way["required"]] for way in rule]
        ways = [" and ".join(names.config_property(leaf) for leaf in way) for way in leaves]
        raise OptionError(server, None, f"needs {', or '.join(ways)}")
    property = names.config_property(path) + index
    match keyword:
        case "enum":
            raise OptionError(server, property, f"expected one of: {', '.join(json.dumps(item) for item in rule)}")
        case "pattern":
            raise OptionError(server, property, f"does not match the pattern {rule}")
        case "minimum" | "maximum":
            raise OptionError(server, property, f"must be {'at least' if keyword == 'minimum' else 'at most'} {rule}")
        case _:
            raise OptionError(server, property, f"breaks the rule {keyword}: {json.dumps(rule)}")


def _required_below(schema: ConfigSchema, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The values that a caller must give so that `path` is present: itself, or what it requires inside."""
    inner = schema.at(path)
    if inner is None or not inner.properties:
        return [path]
    return [leaf for name in inner.required or inner.properties for leaf in _required_below(schema, (*path, name))]


def _unknown(server: str, name: str, properties: Sequence[str]) -> OptionError:
    shown = repr(name if len(name) <= 60 else f"{name[:57]}...")
    near = names.nearest(name, properties)
    if near:
        advice = f"Did you mean {near}?"
    elif properties:
        advice = f"It takes: {', '.join(properties)}."
    else:
        advice = "It takes no options."
    return OptionError(server, None, f"unknown option {shown}. {advice}")
