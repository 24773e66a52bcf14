"""Custom servers: `github/<owner>/<repo>` in the place of a catalog key. Pure.

The repository is cloned, installed and run in the workspace: it is the caller's code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from app.catalog import names
from app.catalog.errors import OptionError
from app.catalog.option_values import read_text
from app.catalog.rendering import PackageRun, RenderedServer

START_TIMEOUT_S = 50.0
"""Clone and installation included. E2B's SDKs give the start of all servers 60 s."""

_PREFIX = "github/"
_KEY = re.compile(r"github/([A-Za-z0-9](?:[A-Za-z0-9-]{0,38}))/([A-Za-z0-9._-]{1,100})")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPELLINGS = {
    "runCmd": "run_cmd",
    "run_cmd": "run_cmd",
    "installCmd": "install_cmd",
    "install_cmd": "install_cmd",
    "envs": "envs",
}
"""E2B's JavaScript SDK types the first of each pair, its Python SDK the second."""


def is_custom_key(key: str) -> bool:
    return key.startswith(_PREFIX)


def render_custom(key: str, options: Mapping[str, object], *, github_url: str) -> RenderedServer:
    """What to run for `github/<owner>/<repo>`: {runCmd, installCmd?, envs?}. Raises: OptionError."""
    match = _KEY.fullmatch(key)
    if match is None or match.group(2) in (".", ".."):
        raise OptionError(key, None, "a custom server is named github/<owner>/<repo>")
    given = _read(key, options)
    run = _read_line(key, "runCmd", given.get("run_cmd"))
    if run is None:
        raise OptionError(key, "runCmd", "is required: the shell line that starts the server in the repository's root")
    return RenderedServer(
        key=key,
        start_timeout_s=START_TIMEOUT_S,
        run=PackageRun(
            command=("/bin/bash", "-l", "-c", run),
            env=read_environment(key, "envs", given.get("envs")),
            placement="workspace",
            repository=f"{github_url.rstrip('/')}/{match.group(1)}/{match.group(2)}",
            install=_read_line(key, "installCmd", given.get("install_cmd")),
        ),
    )


def _read(key: str, options: Mapping[str, object]) -> dict[str, object]:
    given: dict[str, object] = {}
    for name, value in options.items():
        if value is None:
            continue
        known = _SPELLINGS.get(name)
        if known is None:
            near = names.nearest(name, _SPELLINGS)
            advice = f"Did you mean {near}?" if near else "It takes: runCmd, installCmd, envs."
            raise OptionError(key, None, f"unknown option {name[:60]!r}. {advice}")
        if known in given:
            raise OptionError(key, name, "is given twice, in both spellings")
        given[known] = value
    return given


def _read_line(key: str, property: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise OptionError(key, property, "expected a shell line")
    return read_text(key, property, value)


def read_environment(key: str, property: str, value: object) -> dict[str, str]:
    """Variables that a caller gave under `property`. Raises: OptionError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise OptionError(key, property, "expected an object of variable names and values")
    envs: dict[str, str] = {}
    for name, item in value.items():
        if not isinstance(name, str) or _ENV_NAME.fullmatch(name) is None:
            raise OptionError(key, property, "a variable's name has letters, digits and _, and no digit first")
        if not isinstance(item, str | int | float):
            raise OptionError(key, f"{property}.{name}", "expected a string")
        text = str(item).lower() if isinstance(item, bool) else str(item)
        envs[name] = read_text(key, f"{property}.{name}", text)
    return envs
