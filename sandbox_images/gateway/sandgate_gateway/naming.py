"""Names of tools and prompts in the sandbox. Pure: servers and their names in, one name per item out.

A name stays the server's own where it is unique in the sandbox. Names that collide are prefixed with `<server>_`, all
of them, so that the outcome does not depend on the order of servers. Every exposed name is 1 to 64 characters of
`[A-Za-z0-9_.-]`: the MCP specification allows 128, model APIs are tighter. The way back is a table, never a split.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

Naming = Literal["auto", "always"]

MAX_LENGTH = 64
_HASH_LENGTH = 6
_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9_.-]")

Item = tuple[str, str]
"""A server's name and the server's own name of one of its tools or prompts."""


def expose(
    names: Mapping[str, Iterable[str]], naming: Naming = "auto", renamed: Mapping[Item, str] | None = None
) -> dict[Item, str]:
    """The name each (server, own name) has in the sandbox; all values differ, whatever the input.

    `renamed` holds names to go by instead of own ones; they collide like those.
    """
    renamed = renamed or {}
    first = 1 if naming == "always" else 0
    forms = {(server, own): first for server, owns in names.items() for own in owns}
    while True:
        exposed = {item: _FORMS[form](item, renamed.get(item, item[1])) for item, form in forms.items()}
        uses = Counter(exposed.values())
        colliding = {item for item, name in exposed.items() if uses[name] > 1}
        if not colliding:
            return exposed
        # In one group only those with the plainest form move on: the own name "a_x" of one server gives way to the
        # prefixed "a_x" of server "a", not the other way round.
        plainest: dict[str, int] = {}
        for item in colliding:
            plainest[exposed[item]] = min(forms[item], plainest.get(exposed[item], len(_FORMS)))
        for item in colliding:
            if forms[item] == plainest[exposed[item]]:
                forms[item] += 1


def usual_names(item: Item, name: str) -> tuple[str, str]:
    """What an item is called if nothing unusual collides: its own name, or that with the server's in front."""
    return _own(item, name), _prefixed(item, name)


def _own(item: Item, name: str) -> str:
    return _clean(name, item)


def _prefixed(item: Item, name: str) -> str:
    return _clean(f"{item[0]}_{name}", item)


def _hashed(item: Item, name: str) -> str:
    """For prefixed names that still collide: servers "a" and "a_b" with tools "b_c" and "c"."""
    return _with_hash(_NOT_ALLOWED.sub("_", f"{item[0]}_{name}"), item)


def _hash_only(item: Item, _: str) -> str:
    """For a server that took the trouble to compute somebody else's short hash."""
    return _digest(item)[:MAX_LENGTH]


_FORMS: tuple[Callable[[Item, str], str], ...] = (_own, _prefixed, _hashed, _hash_only)
"""The ways to write a name, the plainest first."""


def _clean(name: str, item: Item) -> str:
    cleaned = _NOT_ALLOWED.sub("_", name) or "_"
    return cleaned if len(cleaned) <= MAX_LENGTH else _with_hash(cleaned, item)


def _with_hash(name: str, item: Item) -> str:
    return f"{name[: MAX_LENGTH - _HASH_LENGTH - 1]}_{_digest(item)[:_HASH_LENGTH]}"


def _digest(item: Item) -> str:
    return hashlib.sha256("\0".join(item).encode("utf-8", "surrogatepass")).hexdigest()
