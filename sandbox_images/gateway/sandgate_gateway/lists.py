"""The lists of an MCP server, and all a server offers as one value that can be kept and handed back."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from sandgate_gateway.protocol import LATEST_LEGACY_VERSION, Era

Kind = Literal["tools", "prompts", "resources", "resourceTemplates"]

METHODS: dict[Kind, str] = {
    "tools": "tools/list",
    "prompts": "prompts/list",
    "resources": "resources/list",
    "resourceTemplates": "resources/templates/list",
}
CAPABILITY: dict[Kind, str] = {
    "tools": "tools",
    "prompts": "prompts",
    "resources": "resources",
    "resourceTemplates": "resources",
}
KEYS: dict[Kind, str] = {
    "tools": "name",
    "prompts": "name",
    "resources": "uri",
    "resourceTemplates": "uriTemplate",
}
"""The member that tells the items of a list apart."""
KINDS: tuple[Kind, ...] = tuple(METHODS)

Item = dict[str, Any]


@dataclass(frozen=True)
class Offer:
    """What one server offers, as it said so itself: the body of `GET /lists` and of `remembered` in `PUT /config`."""

    lists: Mapping[Kind, list[Item]] = field(default_factory=dict)
    capabilities: Item = field(default_factory=dict)
    instructions: str = ""
    era: Era = "legacy"
    protocol_version: str = LATEST_LEGACY_VERSION

    def as_json(self) -> dict[str, Any]:
        """With its digest, which is equal for equal offers whatever the order of members."""
        value: dict[str, Any] = {
            "era": self.era,
            "protocolVersion": self.protocol_version,
            "capabilities": self.capabilities,
            "instructions": self.instructions,
            **{kind: self.lists.get(kind, []) for kind in KINDS},
        }
        digest = hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
        return {"digest": f"sha256:{digest}", **value}


def distinct(kind: Kind, items: list[Item]) -> dict[str, Item]:
    """The items by name or URI, in their order; of several with the same one the first counts, those without any do
    not count at all."""
    key = KEYS[kind]
    found: dict[str, Item] = {}
    for item in items:
        name = item.get(key)
        if isinstance(name, str) and name:
            found.setdefault(name, item)
    return found
