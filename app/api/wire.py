"""What bodies have in common, whatever they ask for."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel


class Wire(BaseModel):
    """Fields are `camelCase` on the wire; unknown ones are passed over, as newer SDKs may send more."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


def kept_as_json(given: Any) -> Any:
    """Raises: ValueError for a field with what JSON can say and what cannot be written again."""
    for name, value in given.items() if isinstance(given, dict) else ():
        try:
            orjson.dumps([[value]])  # what it is kept in nests too
        except TypeError:
            raise ValueError(
                f"{name} has a number of more than 64 bits, half of a surrogate pair in a text, or over 250 levels"
            ) from None
    return given


class Asked(Wire):
    """What is kept of a request, or passed on."""

    _can_be_kept = model_validator(mode="before")(kept_as_json)
