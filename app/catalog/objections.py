"""Why a definition is in the catalog and still not run: the reason, and what an operator can do about it. Pure.

Only imported definitions have objections. What keeps one from working fully, without danger, is a note.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from app.catalog.container_tools import ENGINE_SOCKETS, faults_of
from app.catalog.definition import ServerDefinition

State: TypeAlias = Literal["available", "refused"]
"""`refused`: the definition has objections, so a sandbox with it is not started."""


@dataclass(frozen=True, slots=True)
class Objection:
    field: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}. {self.remedy}"


def objections_of(definition: ServerDefinition) -> tuple[Objection, ...]:
    """What keeps the definition from being run; empty for one that can be."""
    return tuple(_objections(definition))


def state_of(definition: ServerDefinition) -> State:
    return "refused" if objections_of(definition) else "available"


def notes_of(definition: ServerDefinition) -> tuple[str, ...]:
    """What a caller should know that works differently from what the definition says."""
    return tuple(dict.fromkeys(_notes(definition)))


def _objections(definition: ServerDefinition) -> Iterator[Objection]:
    if definition.tools and not definition.usable_tools:
        yield from _objections_to_tools(definition)
    own = f"A definition of your own, catalog/servers/{definition.name}.yaml in SANDGATE_HOME, takes its place"
    for text in definition.host_paths:
        if any(socket in text for socket in ENGINE_SOCKETS):
            yield Objection(
                "hostPaths",
                f"{text} would hand over the container engine, and with it the host",
                "Nobody can allow that.",
            )
        else:
            yield Objection(
                "hostPaths",
                f"{text} is a path of the host, which no server in a sandbox sees",
                f"{own}: `volumes` gives it storage of the sandbox, `operatorVolumes` a path that you allow.",
            )
    for wish in definition.host_access:
        yield Objection(
            "hostAccess", f"{wish} asks for access to the host, which no server in a sandbox gets", f"{own}."
        )
    for field, variable in definition.exposures():
        yield Objection(
            field,
            f"it puts the credential in ${variable} where process lists and the container engine show it",
            f"{own}: let the server read the credential from its environment.",
        )


def _objections_to_tools(definition: ServerDefinition) -> Iterator[Objection]:
    for tool in definition.tools:
        yield from (Objection(f"tools.{tool.name}.{field}", *why) for field, *why in faults_of(tool))


def _notes(definition: ServerDefinition) -> Iterator[str]:
    yield from definition.notes
    known = "parameters" if definition.tools else "settings"
    for field, reference in definition.unknown_references():
        yield f"{field}: {reference} names none of its {known}, so it is always empty."
    if usable := definition.usable_tools:
        yield from (f"A tool is left out: {objection}" for objection in _objections_to_tools(definition))
        if on_files := [tool.name for tool in usable if tool.container.volumes]:
            yield f"{', '.join(on_files)}: sees files in the sandbox's volumes only; create it with volumeMounts."
    if definition.remote is not None and definition.oauth is not None and not definition.secrets:
        yield "oauth: the server signs callers in with OAuth, which Sandgate does not do yet; it may refuse to connect."
