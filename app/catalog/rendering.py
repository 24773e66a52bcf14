"""From a definition and a caller's options to what has to be run. Pure.

Each server gets its own credentials and nothing else; they end up in its environment or its headers only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from pydantic import JsonValue

from app.catalog import templates
from app.catalog.container_tools import ContainerTool
from app.catalog.definition import CONTEXT_ROOT, Limits, Placement, Remote, ServerDefinition
from app.catalog.errors import OptionError
from app.catalog.objections import objections_of
from app.catalog.options import Given, options_of, read_options
from app.catalog.package import Package
from app.catalog.templates import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageRun:
    """A command run by the gateway under a uid of its own, or by the agent in the workspace."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str | None = None
    placement: Placement = "gateway"
    package: Package | None = None
    """What has to be installed for it; `command` points there. None for a custom server."""
    repository: str | None = None
    """Clone URL of a custom server."""
    install: str | None = None
    """Shell line to run once in the clone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRun:
    """A container of its own, spoken to through its standard input and output."""

    image: str
    command: tuple[str, ...]
    """Arguments after the image's entrypoint; empty keeps the image's own."""
    env: Mapping[str, str] = field(repr=False)
    user: str | None = None
    volumes: tuple[str, ...] = ()
    """`<name>:<path>`, storage that belongs to the sandbox."""
    operator_volumes: tuple[str, ...] = ()
    """`<name>:<path>[:ro]`, volumes that the operator made on the engine."""
    limits: Limits = Limits()
    capabilities: tuple[str, ...] = ()
    disable_network: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteRun:
    """A server elsewhere that the gateway speaks to over HTTP."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    transport_type: str = "streamable-http"
    allow_private: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerToolsRun:
    """Nothing that stays: each call of a tool is a container of its own."""

    tools: tuple[ContainerTool, ...]
    env: Mapping[str, str] = field(repr=False)
    """Of every container."""
    limits: Limits = Limits()
    disable_network: bool = False


Run: TypeAlias = PackageRun | ImageRun | RemoteRun | ContainerToolsRun


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedServer:
    key: str
    """The name the caller gave it; the server goes by it in the sandbox."""
    start_timeout_s: float | None
    """Seconds until it must have answered `initialize`; None leaves it to the installation."""
    run: Run


def render(
    definition: ServerDefinition, key: str, options: Mapping[str, object], *, placement: Placement | None = None
) -> RenderedServer:
    """What to run for `key: options`. `placement` overrides the definition's. Raises: OptionError."""
    for objection in objections_of(definition):
        raise OptionError(key, None, f"is in the catalog and is not run: {objection}")
    placed = placement or definition.placement
    _check_placement(definition, key, placement)
    home = home_of(definition, placed, key)
    given = read_options(definition, key, options, home=home)
    context: Context = {definition.context_name: dict(given.config), CONTEXT_ROOT: {"home": home}}
    env = _render_env(definition, given, context)
    if definition.remote is not None:
        run: Run = _render_remote(definition, definition.remote, key, context, env)
    elif definition.image is not None:
        run = ImageRun(
            image=definition.image,
            command=templates.evaluate_items(definition.command, context, env),
            env=env,
            user=_optional(definition.user, context, env),
            volumes=definition.volumes,
            operator_volumes=definition.operator_volumes,
            limits=definition.limits,
            capabilities=definition.capabilities,
            disable_network=definition.disable_network,
        )
    elif definition.tools:
        run = ContainerToolsRun(
            tools=definition.usable_tools,
            env=env,
            limits=definition.limits,
            disable_network=definition.disable_network,
        )
    else:
        program, *arguments = definition.command
        run = PackageRun(
            command=(_program(definition.package, program), *templates.evaluate_items(arguments, context, env)),
            env=env,
            cwd=_optional(definition.cwd, context, env),
            placement=placed,
            package=definition.package,
        )
    return RenderedServer(key=key, start_timeout_s=definition.start_timeout_s, run=run)


def _program(package: Package | None, name: str) -> str:
    """Where the installed program is, as the sandbox sees it."""
    return name if package is None or name.startswith("/") else f"{package.directory}/bin/{name}"


def home_of(definition: ServerDefinition, placement: Placement, key: str) -> str:
    """The directory a server may write to, `{{sandbox.home}}`."""
    if placement == "workspace":
        return "/home/user"
    if definition.package is not None:
        # The gateway gives each of its servers a directory of its own; docs/ARCHITECTURE.md, section 6.4.
        return f"/var/lib/mcp/{key}"
    return "/tmp"  # in an image of unknown make, the one directory that any user may write to


def _check_placement(definition: ServerDefinition, key: str, placement: Placement | None) -> None:
    if placement is None:
        return
    if definition.package is None:
        where = (
            "elsewhere"
            if definition.remote
            else "in containers of its own"
            if definition.tools
            else "in a container of its own"
        )
        raise OptionError(key, "placement", f"this server runs {where}; only package servers can be placed")
    if placement == "workspace" and definition.secrets:
        raise OptionError(key, "placement", "this server has credentials, which stay out of the workspace")


def _render_env(definition: ServerDefinition, given: Given, context: Context) -> dict[str, str]:
    env = dict(given.secrets)
    for item in definition.env:
        if value := templates.evaluate_text(item.value, context, env):
            env[item.name] = value
    return env


def _render_remote(
    definition: ServerDefinition, remote: Remote, key: str, context: Context, env: Mapping[str, str]
) -> RemoteRun:
    headers: dict[str, str] = {}
    for name, text in remote.headers.items():
        used = set(templates.variables_in(text))
        if not used <= env.keys():
            continue
        value = templates.evaluate_text(text, context, env)
        if any(ord(character) < 32 and character != "\t" for character in value):
            field = _property_of(definition, used)
            raise OptionError(key, field, f"holds a control character, which header {name} cannot carry")
        headers[name] = value
    url = templates.evaluate_text(remote.url, context, env)
    if not url.isprintable() or " " in url:
        raise OptionError(key, None, "an option of it holds a blank or control character, which its URL cannot carry")
    return RemoteRun(url=url, headers=headers, transport_type=remote.transport_type, allow_private=remote.allow_private)


def _property_of(definition: ServerDefinition, variables: set[str]) -> str | None:
    return next((option.name for option in options_of(definition) if variables.intersection(option.spellings)), None)


def _optional(text: str | None, context: Context, env: Mapping[str, str]) -> str | None:
    value: JsonValue = None if text is None else templates.evaluate_text(text, context, env)
    return str(value) if value else None
