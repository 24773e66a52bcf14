"""With which options a server is started before any caller asks for it, and which callers' servers list the same.

What a server lists may depend on how it is set and on which credentials it has. It is taken not to depend on whose
credential it is, nor on what only a caller can know: the address of the service, the account there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from pydantic import JsonValue

from app.catalog.definition import Placement, ServerDefinition
from app.catalog.errors import OptionError
from app.catalog.fingerprint import list_fingerprint
from app.catalog.options import SecretOption, options_of
from app.catalog.stand_ins import required_stand_ins, stand_in_options


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """One start of a server with made-up options."""

    options: Mapping[str, JsonValue]
    fingerprint: str | None
    """What its lists are kept under; None for a server whose lists are never kept."""


def rehearsals_of(definition: ServerDefinition) -> tuple[Rehearsal, ...]:
    """One with all that can be made up, and another with no more than must be given, where that is less.

    Raises: OptionError for a server whose rules no made-up options satisfy.
    """
    full, bare = stand_in_options(definition), required_stand_ins(definition)
    rehearsals = [Rehearsal(full, list_fingerprint(definition, definition.key, full))]
    if bare != full:
        with suppress(OptionError):  # it needs one of several that can each be left out
            rehearsals.append(Rehearsal(bare, list_fingerprint(definition, definition.key, bare)))
    return tuple(rehearsals)


def fingerprint_of_any(full: str) -> str:
    """What lists are kept under too if all rehearsals came to the same: what can be left out makes no difference then.

    `full` is the fingerprint of the one with all that can be made up.
    """
    return hashlib.sha256(f"any\n{full}".encode()).hexdigest()


def rehearsed_fingerprints(
    definition: ServerDefinition, options: Mapping[str, object], *, placement: Placement | None = None
) -> list[str]:
    """Of rehearsals whose lists stand for a server with these options, if there were any: the most alike first."""
    made_up = stand_in_options(definition)
    alike: dict[str, object] = dict(required_stand_ins(definition))
    for option in options_of(definition):
        nothing = (None, "") if isinstance(option, SecretOption) else (None,)
        given = [options[spelling] for spelling in option.spellings if options.get(spelling) not in nothing]
        if given:
            alike[option.name] = made_up.get(option.name, given[0])
    exactly = _fingerprint(definition, alike, placement)
    full = _fingerprint(definition, made_up | alike, placement)
    return [*filter(None, [exactly]), *(fingerprint_of_any(one) for one in filter(None, [full]))]


def _fingerprint(
    definition: ServerDefinition, options: Mapping[str, object], placement: Placement | None
) -> str | None:
    try:
        return list_fingerprint(definition, definition.key, options, placement=placement)
    except OptionError:  # what was given excludes something that was made up
        return None
