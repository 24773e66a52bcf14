"""Which tools of a server a sandbox has, and what they are called there. Pure."""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sandgate_gateway.fields import ConfigurationError, mapping, string_map, strings
from sandgate_gateway.lists import Item


@dataclass(frozen=True)
class ToolRules:
    """Globs and keys are the server's own names, case-sensitive; `*`, `?` and `[…]` are those of a shell."""

    allow: tuple[str, ...] | None = None
    """None allows every tool."""
    deny: tuple[str, ...] = ()
    """Weighs more than `allow`."""
    rename: Mapping[str, str] = field(default_factory=dict)
    describe: Mapping[str, str] = field(default_factory=dict)
    _allowed: re.Pattern[str] | None = field(init=False, repr=False, compare=False)
    _denied: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_allowed", None if self.allow is None else _any_of(self.allow))
        object.__setattr__(self, "_denied", _any_of(self.deny) if self.deny else None)

    def has(self, own: str) -> bool:
        if self._allowed is not None and not self._allowed.match(own):
            return False
        return self._denied is None or not self._denied.match(own)

    def name_of(self, own: str) -> str:
        """The name to use instead of the server's own."""
        return self.rename.get(own, own)

    def described(self, own: str, tool: Item) -> Item:
        text = self.describe.get(own)
        return tool if text is None else {**tool, "description": text}


ALL_TOOLS = ToolRules()


def parse_tool_rules(value: Any, where: str) -> ToolRules:
    """Absent means all tools as they are. Raises: ConfigurationError."""
    if value is None:
        return ALL_TOOLS
    rules = mapping(value, where)
    if unknown := sorted(rules.keys() - {"allow", "deny", "rename", "describe"}):
        raise ConfigurationError(f"{where} knows allow, deny, rename and describe, but not {unknown[0]!r}")
    rename = string_map(rules.get("rename"), f"{where}.rename")
    names = list(rename.values())
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigurationError(f"{where}.rename: two tools cannot both be called {twice!r}")
    if "" in names:
        raise ConfigurationError(f"{where}.rename: a name must not be empty")
    return ToolRules(
        allow=None if rules.get("allow") is None else strings(rules["allow"], f"{where}.allow"),
        deny=strings(rules.get("deny") or [], f"{where}.deny"),
        rename=rename,
        describe=string_map(rules.get("describe"), f"{where}.describe"),
    )


def _any_of(globs: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs) or r"(?!)")
