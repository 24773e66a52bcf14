"""`server.yaml` of Docker's MCP registry, the source its catalog is built from. Pure.

The way to a catalog entry is that of pkg/catalog/tile.go in github.com/docker/mcp-registry, with what that leaves out:
`longLived`, tools and the defaults of parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from app.catalog.formats import docker_catalog
from app.catalog.formats.reading import Manifest, RefusedError, entry_of, list_of, object_of

_LIFTED = ("command", "volumes", "user", "disableNetwork", "allowHosts")
_KEPT = ("type", "image", "longLived", "dynamic", "remote", "tools", "requirement")


def recognises(document: object) -> bool:
    return (
        isinstance(document, Mapping)
        and isinstance(document.get("name"), str)
        and any(isinstance(document.get(field), Mapping) for field in ("about", "meta", "run"))
    )


def manifest_of(entry: str, value: object) -> Manifest:
    """Raises: RefusedError."""
    return docker_catalog.manifest_of(entry, _tile_of(entry, entry_of(value)))


def _tile_of(entry: str, server: Mapping[Any, Any]) -> dict[str, Any]:
    about, run, config, source = (object_of(server, field) for field in ("about", "run", "config", "source"))
    tile: dict[str, Any] = {field: server[field] for field in _KEPT if server.get(field)}
    tile |= {field: run[field] for field in _LIFTED if run.get(field)}
    tile["title"] = about.get("title") or entry
    tile["description"] = " ".join(str(about.get("description") or "").split())
    tile |= {"icon": about.get("icon"), "upstream": source.get("project") or source.get("upstream")}
    if source.get("project"):
        path = "/".join(str(source[part]) for part in ("commit", "directory") if source.get(part))
        tile["source"] = f"{source['project']}/tree/{path}" if path else source["project"]
    tile["metadata"] = object_of(server, "meta")
    tile["secrets"] = list_of(config, "secrets")
    tile["env"] = [
        *({"name": item.get("name"), "value": item.get("value", "")} for item in map(entry_of, list_of(config, "env"))),
        *({"name": str(name), "value": str(value)} for name, value in object_of(run, "env").items()),
    ]
    if parameters := object_of(config, "parameters"):
        schema = {"type": "object", "description": config.get("description"), **parameters}
        if any_of := config.get("anyOf"):
            schema.setdefault("anyOf", any_of)
        defaults: dict[str, Any] = {}
        tile["config"] = [_without_defaults({k: v for k, v in schema.items() if v is not None}, (), defaults)]
        tile["x-defaults"] = defaults
    if server.get("oauth"):
        tile["oauth"] = {"providers": list_of(server, "oauth")}
    return {field: value for field, value in tile.items() if value not in (None, "", [], {})}


def _without_defaults(schema: Mapping[Any, Any], path: tuple[str, ...], defaults: dict[str, Any]) -> dict[str, Any]:
    """The schema as the catalog has it; its defaults go to `defaults`, path -> value."""
    if len(path) > docker_catalog.DEEPEST:
        raise RefusedError("config", f"nests more than {docker_catalog.DEEPEST} objects")
    result = {str(field): value for field, value in schema.items() if field != "default"}
    if path and "default" in schema and not schema.get("properties"):
        defaults[".".join(path)] = schema["default"]
    properties = dict(_properties(schema))
    if properties:
        result["properties"] = {
            name: _without_defaults(inner, (*path, name), defaults) if isinstance(inner, Mapping) else inner
            for name, inner in properties.items()
        }
    return result


def _properties(schema: Mapping[Any, Any]) -> Iterator[tuple[str, object]]:
    yield from ((str(name), inner) for name, inner in object_of(schema, "properties").items())
