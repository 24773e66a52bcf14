"""A definition as the public catalog shows it."""

from __future__ import annotations

from pydantic import JsonValue

from app.catalog.definition import ServerDefinition
from app.catalog.objections import notes_of, objections_of, state_of
from app.catalog.options import ConfigOption, SecretOption, default_of, options_of, required_properties
from app.catalog.rendering import home_of


def describe(definition: ServerDefinition) -> dict[str, JsonValue]:
    """One item of `GET /api/v1/catalog`. `properties` are the names E2B's SDKs use in `mcp`."""
    placement = definition.placement if definition.package else "gateway" if definition.remote else "container"
    return {
        "key": definition.key,
        "name": definition.name,
        "title": definition.title,
        "description": definition.description,
        "type": definition.type,
        "placement": placement,
        "properties": {option.name: _describe(definition, option) for option in options_of(definition)},
        "required": list(required_properties(definition)),
        "homepage": definition.homepage,
        "category": definition.category,
        "verified": definition.verified,
        "state": state_of(definition),
        "reasons": [str(objection) for objection in objections_of(definition)],
        "notes": list(notes_of(definition)),
    }


def describe_whole(definition: ServerDefinition) -> dict[str, JsonValue]:
    """`GET /api/v1/catalog/servers/{key}`: with tools as the definition lists them, and the manifest itself."""
    listed = definition.annotations.get("tools")
    tools: list[JsonValue] = [
        {"name": tool.name, "description": tool.description, "inputSchema": tool.input_schema}
        for tool in definition.tools
    ]
    return describe(definition) | {
        "aliases": list(definition.aliases),
        "tags": list(definition.tags),
        "tools": tools + ([tool for tool in listed if isinstance(tool, dict)] if isinstance(listed, list) else []),
        "manifest": definition.model_dump(mode="json", by_alias=True, exclude_defaults=True),
    }


def _describe(definition: ServerDefinition, option: SecretOption | ConfigOption) -> dict[str, JsonValue]:
    if isinstance(option, SecretOption):
        secret: dict[str, JsonValue] = {"type": "string", "description": option.secret.description, "secret": True}
        return secret | ({"obtainAt": option.secret.obtain_at} if option.secret.obtain_at else {})
    schema = option.schema.model_dump(by_alias=True, exclude_none=True)
    default = default_of(option.schema, home_of(definition, definition.placement, definition.key))
    return {"description": "", **schema} | ({} if default is None else {"default": default})
