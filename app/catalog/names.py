"""How catalog names become the keys and property names that E2B's SDKs know.

E2B generates the types of `Sandbox.create(mcp=…)` from Docker's MCP catalog. The rules are those which reproduce its
published specification (spec/mcp-server.json of github.com/e2b-dev/E2B, 265 servers with 549 properties): every key,
and every property but one of `temporal`, which the catalog has changed since.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence

_KEY_OWNERS = {
    "apify": "apify-mcp-server",
    "needle": "needle-mcp",
    "playwright": "playwright-mcp-server",
    "sqlite": "SQLite",
}
"""Where two servers of Docker's catalog come to one key: the one that E2B's specification means by it."""
_OWNER = re.compile(r"https?://(?:github|gitlab)\.com/([A-Za-z0-9][A-Za-z0-9-]*)")
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


def owns_its_key(name: str) -> bool:
    """Whether a server comes first for the key of its name, where a catalog has several with one."""
    return _KEY_OWNERS.get(server_key(name), name) == name


def other_keys(name: str, homepage: str | None, is_remote: bool) -> Iterator[str]:
    """Further keys for a server whose own is taken, the plainest first: `sqliteMcpServer`, `apifyRemote`,
    `playwrightMicrosoft`."""
    key = server_key(name)
    if (whole := camel_case(name.lower())) != key:
        yield whole
    if is_remote:
        yield f"{key}Remote"
    elif owner := _OWNER.match(homepage or ""):
        yield f"{key}{camel_case(f'-{owner[1].lower()}')}"


def nearest(wanted: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like `wanted`, case and separators aside; None if none comes close."""
    return next(iter(nearest_few(wanted, known, 1)), None)


def nearest_few(wanted: str, known: Iterable[str], count: int) -> list[str]:
    """The known names that look most like `wanted`, the most alike first; empty if none comes close."""
    folded: dict[str, str] = {}
    for name in known:
        folded.setdefault(_fold(name), name)
    return [folded[match] for match in difflib.get_close_matches(_fold(wanted), folded, n=count, cutoff=0.6)]


def _fold(name: str) -> str:
    return camel_case(name).lower()
