"""What manifests are made of: the common rules of their parts, and the JSON Schema of a server's configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from app.catalog.json_schemas import SchemaError, make_validator, shortened

T = TypeVar("T")
Items = Annotated[tuple[T, ...], Field(strict=False)]
"""A YAML list."""

Text = Annotated[str, StringConstraints(min_length=1)]


class ManifestPart(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=to_camel, use_attribute_docstrings=True
    )


class RequiredTogether(ManifestPart):
    """One way to satisfy `anyOf`: these properties are all given."""

    required: Items[Text]


class ConfigSchema(ManifestPart):
    """A JSON Schema (2020-12) with the keywords that configuration needs."""

    type: Literal["string", "integer", "number", "boolean", "array", "object"]
    title: str | None = None
    description: str | None = None
    default: JsonValue = None
    """Used when the caller gives no value. May hold `{{sandbox.home}}`."""
    example: JsonValue = None
    enum: Items[JsonValue] | None = None
    pattern: str | None = None
    format: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    min_items: int | None = None
    max_items: int | None = None
    items: ConfigSchema | None = None
    properties: Mapping[Text, ConfigSchema] | None = None
    required: Items[Text] | None = None
    any_of: Items[RequiredTogether] | None = None

    def leaves(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ConfigSchema]]:
        """What a caller can set: every value below this object that is not itself an object with named properties."""
        for name, schema in (self.properties or {}).items():
            if schema.properties:
                yield from schema.leaves((*path, name))
            else:
                yield (*path, name), schema

    def check(self, path: tuple[str, ...] = ()) -> None:
        """Raises: PydanticCustomError for a schema that no value could satisfy or that cannot be applied."""
        where = ".".join(("config", *path))
        alternatives = [name for way in self.any_of or () for name in way.required]
        for name in (*(self.required or ()), *alternatives):
            if name not in (self.properties or {}):
                refuse(where, f"{name} is required and is no property")
        if self.default is not None and not _is_of_type(self.default, self.type):
            refuse(where, f"the default is no {self.type}")
        if self.pattern is not None:
            try:
                make_validator({"pattern": self.pattern})
            except SchemaError:
                refuse(where, f"the pattern is no regular expression: {shortened(self.pattern)}")
        for name, inner in (self.properties or {}).items():
            inner.check((*path, name))
        if self.items is not None:
            self.items.check((*path, "items"))

    def at(self, path: tuple[str, ...]) -> ConfigSchema | None:
        schema: ConfigSchema | None = self
        for name in path:
            schema = (schema.properties or {}).get(name) if schema else None
        return schema


class ConfigObject(ConfigSchema):
    """The one schema of a server's configuration."""

    type: Literal["object"] = "object"


def _is_of_type(value: JsonValue, type: str) -> bool:
    match type:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "array":
            return isinstance(value, list)
        case _:
            return isinstance(value, dict)


def refuse(field: str, message: str) -> NoReturn:
    """Raises: PydanticCustomError, as a problem of that field of the manifest."""
    raise PydanticCustomError("definition", "{message}", {"field": field, "message": message})


def refuse_duplicates(field: str, found: list[str]) -> None:
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        refuse(field, f"{twice[0]} is defined twice")
