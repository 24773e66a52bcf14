"""What the tools, prompts and resources of a server depend on, as a digest: equal for runs that list the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict

import orjson

from app.catalog.definition import Placement, ServerDefinition
from app.catalog.options import SecretOption, options_of
from app.catalog.rendering import render

_MASK = "x"


def list_fingerprint(
    definition: ServerDefinition, key: str, options: Mapping[str, object], *, placement: Placement | None = None
) -> str | None:
    """Of a server that `render` accepts. Covers version, command and configuration; a credential only by being there.

    None where nothing is to be remembered: of a server that says its lists change at run time, and of one whose tools
    stand in the definition.
    """
    if definition.dynamic.tools or definition.tools:
        return None
    secrets = [option for option in options_of(definition) if isinstance(option, SecretOption)]
    spellings = {spelling for secret in secrets for spelling in secret.spellings}
    masked = {name: _MASK if name in spellings and value is not None else value for name, value in options.items()}
    run = render(definition, key, masked, placement=placement).run
    kind = type(run).__name__
    return hashlib.sha256(orjson.dumps([kind, asdict(run)], option=orjson.OPT_SORT_KEYS, default=str)).hexdigest()
