"""Docker's MCP catalog files, versions 2 and 3, as definitions. Pure: takes a parsed document.

The format is that of https://desktop.docker.com/mcp/catalog/v3/catalog.yaml: `{version, name, displayName, registry:
{<server>: <tile>}}`. What a definition has no field for is kept in its `annotations`. An entry that cannot be taken
over, or should not, is refused with a reason and does not stop the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app.catalog.catalog import problems_of
from app.catalog.definition import ServerDefinition
from app.catalog.errors import CatalogError

_TRANSPORTS = {
    "sse": "sse",
    "http": "streamable-http",
    "streamable": "streamable-http",
    "streaming": "streamable-http",
    "streamable-http": "streamable-http",
}
_SAME_MEANING = (
    "title", "description", "image", "command", "env", "user", "allowHosts", "disableNetwork", "longLived", "oauth",
)  # fmt: skip
_CONVERTED = (
    "name",
    "type",
    "remote",
    "sseEndpoint",
    "secrets",
    "config",
    "x-defaults",
    "volumes",
    "dynamic",
    "upstream",
)
_ANNOTATED = ("category", "tags", "license")
_HOST_ACCESS = ("privileged", "capAdd", "devices", "securityOpt", "networkMode", "pid", "extraHosts")
_DEEPEST = 16
_NAMED_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*:/[^:]+")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an entry was not taken over."""

    entry: str
    field: str
    """Empty if it is the entry as a whole."""
    reason: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.entry, self.field, self.reason) if part)


@dataclass(frozen=True, slots=True)
class DockerCatalog:
    name: str
    title: str
    definitions: tuple[ServerDefinition, ...]
    """In the order of the document."""
    refused: tuple[Refusal, ...]
    """Every reason; an entry may have several."""


class _RefusedError(Exception):
    """An entry that cannot be taken over, with the field at fault."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


def read_docker_catalog(document: object, *, origin: str) -> DockerCatalog:
    """`origin` is what errors call the document. Raises: CatalogError if it is no such catalog at all."""
    registry = document.get("registry") if isinstance(document, Mapping) else None
    if not isinstance(document, Mapping) or not isinstance(registry, Mapping):
        raise CatalogError([f"{origin}: registry: expected an object of servers, as in Docker's catalog files"])
    definitions: list[ServerDefinition] = []
    refused: list[Refusal] = []
    for entry, tile in registry.items():
        try:
            definitions.append(ServerDefinition.model_validate(manifest_of(str(entry), tile)))
        except _RefusedError as error:
            refused.append(Refusal(str(entry), error.field, error.reason))
        except ValidationError as error:
            refused.extend(Refusal(str(entry), field, reason) for field, reason in problems_of(error))
    name = str(document.get("name") or "docker")
    return DockerCatalog(name, str(document.get("displayName") or name), tuple(definitions), tuple(refused))


def manifest_of(entry: str, tile: object) -> dict[str, Any]:
    """A tile as a manifest, not yet checked. Raises: _RefusedError."""
    if not isinstance(tile, Mapping):
        raise _RefusedError("", "expected an object")
    _check_host_access(tile)
    metadata = _object(tile, "metadata")
    config = _config_of(tile)
    manifest: dict[str, Any] = {"name": entry, "title": entry, "type": "server"}
    manifest |= {field: tile[field] for field in _SAME_MEANING if tile.get(field)}
    manifest |= {field: metadata[field] for field in _ANNOTATED if metadata.get(field)}
    if remote := _remote_of(tile):
        manifest |= {"type": "remote", "remote": remote}
    elif not tile.get("image"):
        raise _RefusedError("type", "runs one container per tool call, without MCP; Sandgate cannot do that")
    required = _required_secrets(config)
    manifest["secrets"] = [_secret_of(secret, config, required) for secret in _list(tile, "secrets")]
    if config is not None:
        manifest["config"] = config | ({"required": _required_settings(config)} if "required" in config else {})
    if volumes := list(_volumes_of(tile)):
        manifest["volumes"] = volumes
    if dynamic := _object(tile, "dynamic"):
        manifest["dynamic"] = dynamic
    if tile.get("upstream"):
        manifest["homepage"] = tile["upstream"]
    annotations = {str(k): v for k, v in tile.items() if k not in (*_SAME_MEANING, *_CONVERTED, "metadata") and v}
    if kept := {str(field): value for field, value in metadata.items() if field not in _ANNOTATED and value}:
        annotations["metadata"] = kept
    return manifest | ({"annotations": annotations} if annotations else {})


def _check_host_access(tile: Mapping[Any, Any]) -> None:
    for field in _HOST_ACCESS:
        if tile.get(field):
            raise _RefusedError(field, "asks for access to the host, which servers in a sandbox do not get")


def _volumes_of(tile: Mapping[Any, Any]) -> Iterator[str]:
    for volume in _list(tile, "volumes"):
        text = str(volume)
        if "docker.sock" in text:
            raise _RefusedError("volumes", f"{text} would hand over the container engine")
        if _NAMED_VOLUME.fullmatch(text) is None:
            raise _RefusedError(
                "volumes", f"{text} is a path of the host; a server in a sandbox has named volumes only"
            )
        yield text


def _remote_of(tile: Mapping[Any, Any]) -> dict[str, Any] | None:
    if tile.get("sseEndpoint"):
        return {"url": tile["sseEndpoint"], "transport_type": "sse"}
    remote = _object(tile, "remote")
    if not remote:
        return None
    transport = str(remote.get("transport_type"))
    if transport not in _TRANSPORTS:
        raise _RefusedError("remote.transport_type", f"{transport!r} is none of {', '.join(_TRANSPORTS)}")
    return {**remote, "transport_type": _TRANSPORTS[transport]}


def _secret_of(secret: object, config: Mapping[str, Any] | None, required: set[str]) -> object:
    """A credential is required if the tile says so, or if the configuration's `required` names it.

    A tile that says nothing means what E2B makes of it: required, unless the configuration lists what is.
    """
    if not isinstance(secret, Mapping):
        return secret
    unstated = config is None or not any(_required_lists(config))
    named = str(secret.get("name")).rpartition(".")[2] in required
    return {**secret, "required": True if named else secret.get("required", unstated)}


def _required_secrets(config: Mapping[str, Any] | None) -> set[str]:
    """What `required` names beside properties: proxmox lists its token there."""
    return set() if config is None else set(map(str, _list(config, "required"))) - set(_object(config, "properties"))


def _required_settings(config: Mapping[str, Any]) -> list[Any]:
    """`required` without the names of what is no property; a few entries of the registry have such."""
    properties = _object(config, "properties")
    return [name for name in _list(config, "required") if not isinstance(name, str) or name in properties]


def _required_lists(schema: Mapping[str, Any]) -> Iterator[list[Any]]:
    yield _list(schema, "required")
    for inner in _object(schema, "properties").values():
        if isinstance(inner, Mapping):
            yield from _required_lists(inner)


def _config_of(tile: Mapping[Any, Any]) -> dict[str, Any] | None:
    """The one schema, with the defaults that stand beside it.

    A default of something required is a sample for people (`/Users/local-test`), so it becomes an example: applying it
    would hide that the caller forgot the value.
    """
    schemas = _list(tile, "config")
    if not schemas:
        return None
    if len(schemas) > 1 or not isinstance(schemas[0], Mapping) or not schemas[0]:
        raise _RefusedError("config", "expected a list with one JSON schema")
    config = {str(name): value for name, value in schemas[0].items() if name != "name"}
    defaults = {str(path): value for path, value in _object(tile, "x-defaults").items()}
    if unknown := set(defaults) - {".".join(path) for path in _leaf_paths(config)}:
        raise _RefusedError("x-defaults", f"{min(unknown)} is not in config")
    return _with_defaults(config, defaults)


def _leaf_paths(schema: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if len(path) > _DEEPEST:
        raise _RefusedError("config", f"nests more than {_DEEPEST} objects")
    for name, inner in _object(schema, "properties").items():
        if isinstance(inner, Mapping) and inner.get("properties"):
            yield from _leaf_paths(inner, (*path, str(name)))
        else:
            yield (*path, str(name))


def _with_defaults(
    schema: Mapping[str, Any], defaults: Mapping[str, Any], path: tuple[str, ...] = ()
) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, inner in _object(schema, "properties").items():
        here = (*path, str(name))
        properties[str(name)] = inner
        if isinstance(inner, Mapping):
            properties[str(name)] = completed = _with_defaults(inner, defaults, here)
            if (default := defaults.get(".".join(here))) is not None:
                completed["example" if name in _list(schema, "required") else "default"] = default
    return {**schema, "properties": properties} if properties else dict(schema)


def _object(value: Mapping[Any, Any], field: str) -> Mapping[Any, Any]:
    inner = value.get(field) or {}
    if not isinstance(inner, Mapping):
        raise _RefusedError(field, "expected an object")
    return inner


def _list(value: Mapping[Any, Any], field: str) -> list[Any]:
    inner = value.get(field) or []
    if not isinstance(inner, list):
        raise _RefusedError(field, "expected a list")
    return inner
