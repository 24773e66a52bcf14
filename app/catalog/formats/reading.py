"""What the readers of foreign formats share: an entry becomes a manifest, or is refused with field and reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from app.catalog.definition import ServerDefinition
from app.catalog.errors import problems_of
from app.catalog.json_schemas import SchemaError, make_validator

Manifest = dict[str, Any]
"""A definition as `ServerDefinition.imported` takes it, not yet checked."""

_LONGEST_REASON = 300
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an entry was not taken over."""

    entry: str
    field: str
    """Empty if it is the entry as a whole."""
    reason: str
    remedy: str = "Correct the entry in the document and import it again."

    def __str__(self) -> str:
        return ": ".join(part for part in (self.entry, self.field, self.reason) if part)


class RefusedError(Exception):
    """An entry that cannot be taken over, with the field at fault and what to do."""

    def __init__(self, field: str, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Format:
    """How documents of one kind are recognised and read."""

    name: str
    recognises: Callable[[object], bool]
    entries: Callable[[Any], Iterable[tuple[str, object]]]
    """The entries of a document that was recognised, each with its name there."""
    manifest_of: Callable[[str, object], Manifest]
    """Raises: RefusedError."""
    title_of: Callable[[Any], str | None] = field(default=lambda _document: None)


def read_entries(
    entries: Iterable[tuple[str, object]], manifest_of: Callable[[str, object], Manifest]
) -> Iterator[ServerDefinition | Refusal]:
    """A definition of every entry, or every reason why there is none. An entry never stops the others."""
    for entry, value in entries:
        try:
            manifest = manifest_of(entry, value)
            _check_grants(manifest)
            definition = ServerDefinition.imported(manifest)
            _check_config(definition)
            yield definition
        except RefusedError as error:
            refusal = Refusal(entry, error.field, error.reason)
            yield refusal if error.remedy is None else Refusal(entry, error.field, error.reason, error.remedy)
        except ValidationError as error:
            yield from (Refusal(entry, field, reason) for field, reason in problems_of(error))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # A value of another kind than its format has there, at a place that nobody expected it at.
            yield Refusal(entry, "", f"a value is not what the format has there: {error}"[:_LONGEST_REASON])


def _check_config(definition: ServerDefinition) -> None:
    """Raises: RefusedError for a `config` that no value can be checked by."""
    if definition.config is None:
        return
    try:
        make_validator(definition.config.model_dump(by_alias=True, exclude_none=True))
    except SchemaError as error:
        raise RefusedError("config", f"is no JSON Schema: {error}") from error


def _check_grants(manifest: Manifest) -> None:
    """Raises: RefusedError for what an operator grants to a server, which no document from elsewhere can."""
    remote = manifest.get("remote")
    if isinstance(remote, Mapping) and remote.get("allowPrivate"):
        raise RefusedError(
            "remote.allowPrivate",
            "only a definition of the operator's own may reach addresses that are not public",
            "Write it to catalog/servers/ in SANDGATE_HOME.",
        )


def object_of(value: Mapping[Any, Any], field: str) -> Mapping[Any, Any]:
    """An object, empty if it is absent. Raises: RefusedError."""
    inner = value.get(field) or {}
    if not isinstance(inner, Mapping):
        raise RefusedError(field, "expected an object")
    return inner


def list_of(value: Mapping[Any, Any], field: str) -> list[Any]:
    """A list, empty if it is absent. Raises: RefusedError."""
    inner = value.get(field) or []
    if not isinstance(inner, list):
        raise RefusedError(field, "expected a list")
    return inner


def objects_of(value: Mapping[Any, Any], field: str) -> list[Mapping[Any, Any]]:
    """A list of objects, empty if it is absent. Raises: RefusedError."""
    inner = list_of(value, field)
    for index, item in enumerate(inner):
        if not isinstance(item, Mapping):
            raise RefusedError(f"{field}.{index}", "expected an object")
    return inner


def text_of(value: Mapping[Any, Any], field: str) -> str:
    """Text, empty if it is absent. Raises: RefusedError."""
    inner = value.get(field)
    if inner is None:
        return ""
    if not isinstance(inner, str):
        raise RefusedError(field, "expected text")
    return inner


def entry_of(value: object) -> Mapping[Any, Any]:
    """Raises: RefusedError."""
    if not isinstance(value, Mapping):
        raise RefusedError("", "expected an object")
    return value


def catalog_name(name: str) -> str:
    """A name from elsewhere with the characters that a catalog name may have."""
    return _NOT_IN_A_NAME.sub("-", name).strip("-._")[:64] or "server"


def variable_name(*words: str) -> str:
    """`docs`, `X-API-Key` -> `DOCS_X_API_KEY`."""
    text = re.sub(r"[^A-Za-z0-9]+", "_", "_".join(words)).strip("_").upper()
    return text if text[:1].isalpha() else f"_{text}"
