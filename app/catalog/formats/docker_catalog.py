"""Docker's MCP catalog, versions 2 and 3, as manifests: files, artifacts, single servers and image labels. Pure.

The format is that of https://desktop.docker.com/mcp/catalog/v3/catalog.yaml: `{version, name, displayName, registry:
{<server>: <tile>}}`. What a definition has no field for is kept in its `annotations`; what Sandgate does not run, such
as paths of the host, is kept in fields that `app.catalog.objections` refuses when the server is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from app.catalog.documents import load_yaml
from app.catalog.formats.reading import Manifest, RefusedError, entry_of, list_of, object_of

METADATA_LABEL = "io.docker.server.metadata"

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
DEEPEST = 16
_NAMED_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*:/[^:]+")


def entries_of(document: Mapping[Any, Any]) -> Iterator[tuple[str, object]]:
    """The servers of a catalog file (`registry`) or of a catalog artifact (`servers`, each with its `snapshot`)."""
    if isinstance(registry := document.get("registry"), Mapping):
        yield from ((str(name), tile) for name, tile in registry.items())
        return
    for index, item in enumerate(list_of(document, "servers")):
        snapshot = object_of(item, "snapshot") if isinstance(item, Mapping) else {}
        tile = snapshot.get("server")
        name = tile.get("name") if isinstance(tile, Mapping) else None
        yield str(name or f"servers.{index}"), tile


def is_catalog(document: object) -> bool:
    if not isinstance(document, Mapping):
        return False
    servers = document.get("servers")
    return isinstance(document.get("registry"), Mapping) or (
        isinstance(servers, list)
        and bool(servers)
        and all(isinstance(item, Mapping) and ("snapshot" in item or "type" in item) for item in servers)
    )


def is_tile(document: object) -> bool:
    """One server by itself: a file for `docker mcp`, or what the image label `io.docker.server.metadata` holds."""
    return (
        isinstance(document, Mapping)
        and isinstance(document.get("name"), str)
        and bool({"image", "remote", "sseEndpoint", "tools"} & document.keys())
    )


def labelled_images(document: object) -> Iterator[tuple[str, object]]:
    """The tiles in the labels of what `docker image inspect` prints, each with the image it came from."""
    for image in document if isinstance(document, list) else [document]:
        if not isinstance(image, Mapping):
            continue
        config = image.get("Config")
        labels = config.get("Labels") if isinstance(config, Mapping) else None
        text = labels.get(METADATA_LABEL) if isinstance(labels, Mapping) else None
        if not isinstance(text, str):
            continue
        references = [*(image.get("RepoDigests") or []), *(image.get("RepoTags") or []), image.get("Id")]
        reference = next((str(item) for item in references if item), "")
        try:
            tile = load_yaml(text)
        except yaml.YAMLError:
            yield reference, None
            continue
        if isinstance(tile, Mapping):
            yield str(tile.get("name") or reference), {"type": "server", **tile, "image": reference}
        else:
            yield reference, tile


def manifest_of(entry: str, value: object) -> Manifest:
    """A tile as a manifest. Raises: RefusedError."""
    tile = entry_of(value)
    metadata = object_of(tile, "metadata")
    config = _config_of(tile)
    manifest: Manifest = {"name": entry, "title": entry, "type": "server"}
    manifest |= {field: tile[field] for field in _SAME_MEANING if tile.get(field)}
    manifest |= {field: metadata[field] for field in _ANNOTATED if metadata.get(field)}
    if remote := _remote_of(tile):
        manifest |= {"type": "remote", "remote": remote}
    elif not tile.get("image"):
        manifest |= {"type": "poci", "tools": [_tool_of(tool) for tool in list_of(tile, "tools")]}
    required = _required_secrets(config)
    manifest["secrets"] = [_secret_of(secret, config, required) for secret in list_of(tile, "secrets")]
    if config is not None:
        manifest["config"] = config | ({"required": _required_settings(config)} if "required" in config else {})
        given = {str(secret.get("name")).rpartition(".")[2] for secret in manifest["secrets"]}
        manifest["notes"] = [
            f"config: {name} is required and names no setting, so it is not asked for."
            for name in sorted(_required_secrets(config) - given)
        ]
    volumes = [str(volume) for volume in list_of(tile, "volumes")]
    manifest["volumes"] = [volume for volume in volumes if _NAMED_VOLUME.fullmatch(volume)]
    manifest["hostPaths"] = [volume for volume in volumes if not _NAMED_VOLUME.fullmatch(volume)]
    manifest["hostAccess"] = {field: tile[field] for field in _HOST_ACCESS if tile.get(field)}
    if dynamic := object_of(tile, "dynamic"):
        manifest["dynamic"] = dynamic
    if tile.get("upstream"):
        manifest["homepage"] = tile["upstream"]
    known = (*_SAME_MEANING, *_CONVERTED, *_HOST_ACCESS, "metadata", *(["tools"] if manifest["type"] == "poci" else []))
    annotations = {str(field): value for field, value in tile.items() if field not in known and value}
    if kept := {str(field): value for field, value in metadata.items() if field not in _ANNOTATED and value}:
        annotations["metadata"] = kept
    return manifest | ({"annotations": annotations} if annotations else {})


def _tool_of(value: object) -> Manifest:
    tool = entry_of(value)
    known = {field: tool[field] for field in ("name", "description", "parameters") if tool.get(field)}
    container = {field: item for field, item in object_of(tool, "container").items() if item}
    return known | {"container": container}


def _remote_of(tile: Mapping[Any, Any]) -> Manifest | None:
    if tile.get("sseEndpoint"):
        return {"url": tile["sseEndpoint"], "transport_type": "sse"}
    remote = object_of(tile, "remote")
    if not remote:
        return None
    transport = str(remote.get("transport_type"))
    if transport not in _TRANSPORTS:
        raise RefusedError("remote.transport_type", f"{transport!r} is none of {', '.join(_TRANSPORTS)}")
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
    return (
        set() if config is None else set(map(str, list_of(config, "required"))) - set(object_of(config, "properties"))
    )


def _required_settings(config: Mapping[str, Any]) -> list[Any]:
    """`required` without the names of what is no property; a few entries of the registry have such."""
    properties = object_of(config, "properties")
    return [name for name in list_of(config, "required") if not isinstance(name, str) or name in properties]


def _required_lists(schema: Mapping[str, Any]) -> Iterator[list[Any]]:
    yield list_of(schema, "required")
    for inner in object_of(schema, "properties").values():
        if isinstance(inner, Mapping):
            yield from _required_lists(inner)


def _config_of(tile: Mapping[Any, Any]) -> dict[str, Any] | None:
    """The one schema, with the defaults that stand beside it.

    A default of something required is a sample for people (`/Users/local-test`), so it becomes an example: applying it
    would hide that the caller forgot the value.
    """
    schemas = list_of(tile, "config")
    if not schemas:
        return None
    if len(schemas) > 1 or not isinstance(schemas[0], Mapping) or not schemas[0]:
        raise RefusedError("config", "expected a list with one JSON schema")
    config = {str(name): value for name, value in schemas[0].items() if name != "name"}
    defaults = {str(path): value for path, value in object_of(tile, "x-defaults").items()}
    if unknown := set(defaults) - {".".join(path) for path in _leaf_paths(config)}:
        raise RefusedError("x-defaults", f"{min(unknown)} is not in config")
    return _with_defaults(config, defaults)


def _leaf_paths(schema: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if len(path) > DEEPEST:
        raise RefusedError("config", f"nests more than {DEEPEST} objects")
    for name, inner in object_of(schema, "properties").items():
        if isinstance(inner, Mapping) and inner.get("properties"):
            yield from _leaf_paths(inner, (*path, str(name)))
        else:
            yield (*path, str(name))


def _with_defaults(
    schema: Mapping[str, Any], defaults: Mapping[str, Any], path: tuple[str, ...] = ()
) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, inner in object_of(schema, "properties").items():
        here = (*path, str(name))
        properties[str(name)] = inner
        if isinstance(inner, Mapping):
            properties[str(name)] = completed = _with_defaults(inner, defaults, here)
            if (default := defaults.get(".".join(here))) is not None:
                completed["example" if name in list_of(schema, "required") else "default"] = default
    return {**schema, "properties": properties} if properties else dict(schema)
