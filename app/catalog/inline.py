"""Servers given inline: their options say what to run (`command`) or where they are (`url`), in the form that MCP
clients write into their `mcpServers`. Pure.

A command is the caller's own code, so it runs in the workspace. What only a URL needs stays in the gateway.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from app.catalog.custom import read_environment
from app.catalog.errors import OptionError
from app.catalog.option_values import read_text
from app.catalog.rendering import PackageRun, RemoteRun, RenderedServer

_KEY = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OF_COMMANDS = frozenset({"type", "command", "args", "env", "cwd"})
_OF_URLS = frozenset({"type", "url", "headers"})
_TRANSPORTS = {"http": "streamable-http", "streamable-http": "streamable-http", "streamableHttp": "streamable-http"}


def is_inline(options: Mapping[str, object]) -> bool:
    """Of a key that is not in the catalog."""
    return "command" in options or "url" in options


def render_inline(key: str, options: Mapping[str, object]) -> RenderedServer:
    """What to run for {command, args?, env?, cwd?} or {url, headers?, type?}. Raises: OptionError."""
    if _KEY.fullmatch(key) is None:
        raise OptionError(key, None, "a server given inline has a name of 1 to 64 letters, digits, `.`, `_` and `-`")
    given = {name: value for name, value in options.items() if value is not None}
    known, what = (_OF_URLS, "url") if "url" in given else (_OF_COMMANDS, "command")
    if unknown := sorted(given.keys() - known):
        raise OptionError(key, unknown[0], f"is unknown beside {what}, which goes with {', '.join(sorted(known))}")
    run = _remote(key, given) if what == "url" else _command(key, given)
    return RenderedServer(key=key, start_timeout_s=None, run=run)


def _command(key: str, given: Mapping[str, object]) -> PackageRun:
    if given.get("type", "stdio") != "stdio":
        raise OptionError(key, "type", "a command speaks stdio")
    arguments = given.get("args", [])
    if not isinstance(arguments, list):
        raise OptionError(key, "args", "expected a list of strings")
    words = [
        _text(key, "command", given["command"]),
        *(_text(key, "args", word, may_be_empty=True) for word in arguments),
    ]
    cwd = given.get("cwd")
    return PackageRun(
        command=tuple(words),
        env=read_environment(key, "env", given.get("env")),
        cwd=None if cwd is None else _text(key, "cwd", cwd),
        placement="workspace",
    )


def _remote(key: str, given: Mapping[str, object]) -> RemoteRun:
    url = _text(key, "url", given["url"])
    if not re.match(r"https?://[^/]", url) or not url.isprintable() or " " in url:
        raise OptionError(key, "url", "expected a URL that begins with https://")
    headers = given.get("headers", {})
    if not isinstance(headers, Mapping):
        raise OptionError(key, "headers", "expected an object of header names and values")
    for name, value in headers.items():
        if not isinstance(name, str) or _HEADER.fullmatch(name) is None:
            raise OptionError(key, "headers", "holds something that is no header's name")
        if not isinstance(value, str) or any(ord(character) < 32 and character != "\t" for character in value):
            raise OptionError(key, f"headers.{name}", "expected a string without control characters")
        read_text(key, f"headers.{name}", value)
    kind = given.get("type", "http")
    transport = "sse" if kind == "sse" else _TRANSPORTS.get(str(kind))
    if transport is None:
        raise OptionError(key, "type", "expected http or sse")
    return RemoteRun(
        url=url, headers={str(name): str(value) for name, value in headers.items()}, transport_type=transport
    )


def _text(key: str, property: str, value: object, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or "\0" in value or not (value or may_be_empty):
        raise OptionError(key, property, "expected a string")
    return read_text(key, property, value)
