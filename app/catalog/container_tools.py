"""Tools that are a container per call (type `poci`): what keeps one from being run, and what a call of it runs. Pure.

The arguments of a call are the context of the templates, so paths start with the name of an argument: `{{args|into}}`.
No shell reads any of it, and an argument stays one argument whatever is in it.
"""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import Field, JsonValue

from app.catalog import templates
from app.catalog.json_schemas import SchemaError, UncheckableError, faults_in, make_validator, path_of, shortened
from app.catalog.manifest_parts import Items, ManifestPart, Text
from app.catalog.templates import Context, Reference, TemplateError

ENGINE_SOCKETS = ("docker.sock", "containerd.sock", "podman.sock")

_LARGEST_ARGUMENT = 128 * 1024 - 1
"""Of one argument of a program in bytes, the NUL behind it not counted: MAX_ARG_STRLEN of execve(2)."""
_LARGEST_COMMAND = 1024 * 1024
_MOST_FAULTS_TOLD = 3


class ToolContainer(ManifestPart):
    """What one call of a container tool runs. Templates take the call's arguments: `{{args|into}}`."""

    image: Text
    """Fixed, so that it is there before the tool is listed."""
    command: Items[str] = ()
    """Arguments after the image's entrypoint; without any the image's own command is kept."""
    volumes: Items[Text] = ()
    """`<path>:<path>[:ro]` with the path from an argument: where the sandbox has a volume of its own."""
    user: str | None = None
    """User (and group) to run as, instead of the image's."""


class ContainerTool(ManifestPart):
    """A tool of type `poci`: one container per call, without MCP inside."""

    name: Text
    description: str = ""
    parameters: Mapping[str, JsonValue] = {"type": "object"}
    """JSON Schema (2020-12) of the call's arguments: the tool's `inputSchema`."""
    container: ToolContainer
    timeout_s: Annotated[float, Field(gt=0, le=600)] | None = None
    """Seconds a call may take, if that is not the usual 60."""

    @property
    def input_schema(self) -> dict[str, JsonValue]:
        """As MCP wants it: of an object, in so many words."""
        return {"type": "object", **self.parameters}


class Fault(NamedTuple):
    """Why a tool is not run, whatever its arguments."""

    field: str
    reason: str
    remedy: str


class CallError(ValueError):
    """A call that cannot be carried out as it was made; the text is for whoever made it."""


@dataclass(frozen=True, slots=True)
class CallVolume:
    """A directory of the caller's that a call wants in its container. Both paths are absolute and without `..`."""

    source: str
    target: str
    is_read_only: bool


@dataclass(frozen=True, slots=True)
class ToolCall:
    command: tuple[str, ...] | None
    """None keeps the image's own."""
    user: str | None
    volumes: tuple[CallVolume, ...]


def faults_of(tool: ContainerTool) -> Iterator[Fault]:
    """What keeps the tool from being run; none for one that can be called."""
    for field, text in _texts(tool):
        try:
            templates.parse(text)
        except TemplateError as error:
            yield Fault(field, str(error), "Mend the template.")
            return
    if "{{" in tool.container.image:
        yield Fault(
            "container.image",
            "the arguments of a call would decide what is run",
            "Name one image: it is pulled before the tool is listed.",
        )
    if (wrong := _wrong_in(tool.input_schema)) is not None:
        yield Fault("parameters", f"it is no JSON Schema of an object: {wrong}", "Mend the schema.")
    for text in tool.container.volumes:
        if any(socket in text for socket in ENGINE_SOCKETS):
            yield Fault(
                "container.volumes",
                f"{text} would hand over the container engine, and with it the host",
                "Nobody can allow that.",
            )
        elif isinstance(templates.parse(text)[0], str):
            yield Fault(
                "container.volumes",
                f"{text} is storage that nothing in a sandbox has",
                "Only a path that is an argument of the call can be mounted, where the sandbox has a volume.",
            )


def unknown_arguments(tool: ContainerTool) -> Iterator[tuple[str, Reference]]:
    """Templates that name no parameter and so come out empty, each with its field."""
    known = tool.parameters.get("properties")
    if not isinstance(known, dict):
        return
    for field, text in _texts(tool):
        for part in templates.parse(text):
            if isinstance(part, Reference) and part.path[0] not in known:
                yield field, part


def plan_call(tool: ContainerTool, arguments: object) -> ToolCall:
    """What to run for a call of a tool without faults. Raises: CallError."""
    context = _checked(tool, arguments)
    container = tool.container
    command = templates.evaluate_items(container.command, context, None)
    user = templates.evaluate_text(container.user or "", context, None)
    for text in (*command, user):
        _check_text(text)
    if sum(len(text.encode()) for text in command) > _LARGEST_COMMAND:
        raise CallError(f"The arguments are longer than {_LARGEST_COMMAND} bytes in all, which no program takes.")
    volumes = templates.evaluate_items(container.volumes, context, None)
    return ToolCall(command or None, user or None, tuple(_volume(text) for text in volumes if text))


def _texts(tool: ContainerTool) -> Iterator[tuple[str, str]]:
    container = tool.container
    yield "container.image", container.image
    yield from (("container.command", text) for text in container.command)
    yield from (("container.volumes", text) for text in container.volumes)
    yield "container.user", container.user or ""


def _wrong_in(schema: Mapping[str, JsonValue]) -> str | None:
    if schema["type"] != "object":
        return f"its type is {schema['type']!r}"
    try:
        make_validator(schema)
    except SchemaError as error:
        return str(error)
    return None


def _checked(tool: ContainerTool, arguments: object) -> Context:
    """The arguments, with the defaults of those that were left out. Raises: CallError."""
    if not isinstance(arguments, dict):
        raise CallError(f"The arguments of {tool.name} must be an object.")
    properties = tool.parameters.get("properties")
    given: dict[str, JsonValue] = {
        name: schema["default"]
        for name, schema in (properties if isinstance(properties, dict) else {}).items()
        if isinstance(schema, dict) and "default" in schema
    }
    given.update(arguments)
    try:
        errors = list(itertools.islice(faults_in(given, tool.input_schema), _MOST_FAULTS_TOLD))
    except UncheckableError as error:
        raise CallError(f"What is given to {tool.name} {error}.") from None
    if errors:
        told = [f"{path_of(error)}: {shortened(error.message)}" for error in errors]
        raise CallError(f"The arguments of {tool.name} break its input schema. " + "; ".join(told))
    return given


def _check_text(text: str) -> None:
    """Raises: CallError for what no program can be given."""
    if "\0" in text:
        raise CallError("An argument holds a NUL character, which no program can be given.")
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise CallError("An argument holds half of a surrogate pair, so it is no text.") from None
    if length > _LARGEST_ARGUMENT:
        raise CallError(f"An argument of {length} bytes is longer than the {_LARGEST_ARGUMENT} that a program takes.")


def _volume(text: str) -> CallVolume:
    source, *rest = text.split(":")
    target, mode = rest[0] if rest else source, rest[1] if len(rest) > 1 else "rw"
    if len(rest) > 2 or mode not in ("ro", "rw"):
        raise CallError(f"{text!r} is no path that can be mounted: it must be without ':'.")
    if not (source.startswith("/") and target.startswith("/")):
        raise CallError(f"{source!r} must be an absolute path.")
    _check_text(text)
    return CallVolume(posixpath.normpath(source), posixpath.normpath(target), mode == "ro")
