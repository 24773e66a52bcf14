"""How catalog names become the keys and property names that E2B's SDKs know.

E2B generates the types of `Sandbox.create(mcp=…)` from Docker's MCP catalog. The rules are those which reproduce its
published specification (spec/mcp-server.json of github.com/e2b-dev/E2B, 265 servers with 549 properties): every key,
and every property but one of `temporal`, which the catalog has changed since.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

_SEPARATORS = re.compile(r"[-_. ]+(.?)")


def camel_case(text: str) -> str:
    """Drop every run of `-`, `_`, `.` and blanks and raise the letter behind it; other letters keep their case."""
    return _SEPARATORS.sub(lambda match: match.group(1).upper(), text)


def server_key(name: str) -> str:
    """`github-official` -> `githubOfficial`, `mcp-hackernews` -> `hackernews`, `airtable-mcp-server` -> `airtable`."""
    stem = name.lower().removeprefix("mcp-")
    without_suffix = stem.removesuffix("-mcp-server")
    return camel_case(without_suffix if without_suffix != stem else stem.removesuffix("-mcp"))


def secret_property(server_name: str, env: str) -> str:
    """The property of a credential, from its environment variable: `exa`, `EXA_API_KEY` -> `apiKey`.

    The server's name is stripped as it is written, so one with a hyphen never matches:
    `github-official`, `GITHUB_PERSONAL_ACCESS_TOKEN` -> `githubPersonalAccessToken`.
    """
    return camel_case(env.lower().removeprefix(f"{server_name.lower()}_"))


def config_property(path: Sequence[str]) -> str:
    """The property of a configuration value, from its path: `confluence`, `url` -> `confluenceUrl`."""
    return camel_case(".".join(path))


def nearest(wanted: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like `wanted`, case and separators aside; None if none comes close."""
    folded: dict[str, str] = {}
    for name in known:
        folded.setdefault(_fold(name), name)
    matches = difflib.get_close_matches(_fold(wanted), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def _fold(name: str) -> str:
    return camel_case(name).lower()
