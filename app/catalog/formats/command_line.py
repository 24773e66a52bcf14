"""The command lines that configurations of MCP clients start servers with: `npx`, `uvx`, `docker run`. Pure.

A command of the author's machine means nothing in a sandbox, so each is taken apart into what it names: a package with
its version, an image, or a URL behind `mcp-remote`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from app.catalog.formats.reading import RefusedError

_NPX = ("npx", "bunx", "pnpx")
_NPX_WITH_VALUE = ("-p", "--package", "--registry", "--cache", "-c", "--call")
_UVX = ("uvx", "pipx")
_UVX_WITH_VALUE = ("--from", "--with", "-p", "--python", "--index-url", "--index", "--default-index", "--spec")
_DOCKER = ("docker", "podman", "nerdctl")
_DOCKER_WITHOUT_VALUE = ("-i", "--interactive", "-t", "-it", "-ti", "--tty", "--rm", "--init", "-d", "--detach", "-q")
_DOCKER_HOST = ("--cap-add", "--device", "--network", "--net", "--pid", "--ipc", "--security-opt", "--add-host")
_NPM_SPEC = re.compile(r"(@[^/@\s]+/[^/@\s]+|[^/@\s]+)(?:@(.+))?")
_PYPI_SPEC = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?(?:(?:==|@)(.+))?")
_EXACT = re.compile(r"v?[0-9][A-Za-z0-9.+!-]*")


@dataclass(slots=True, kw_only=True)
class PackageCommand:
    registry: Literal["npm", "pypi"]
    name: str
    version: str
    program: str
    arguments: Sequence[str]


@dataclass(slots=True, kw_only=True)
class ImageCommand:
    image: str = ""
    arguments: Sequence[str] = ()
    env: dict[str, str | None] = field(default_factory=dict)
    """None: taken from the environment that the client gives."""
    volumes: list[str] = field(default_factory=list)
    user: str | None = None
    host_access: dict[str, str | bool] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """Options that mean nothing here."""


@dataclass(slots=True, kw_only=True)
class RemoteCommand:
    url: str
    headers: dict[str, str]
    transport: Literal["streamable-http", "sse"]


def read_command(command: str, arguments: Sequence[str]) -> PackageCommand | ImageCommand | RemoteCommand:
    """Raises: RefusedError."""
    words = [command, *arguments] if arguments else command.split()
    program = _program(words[0]) if words else ""
    if program == "cmd" and len(words) > 2 and words[1].lower() == "/c":
        words = words[2:]
        program = _program(words[0])
    match program, words[1:]:
        case name, rest if name in _NPX:
            return _read_npx(rest)
        case "npm", ["exec", *rest]:
            return _read_npx(rest)
        case "pnpm" | "yarn", ["dlx", *rest]:
            return _read_npx(rest)
        case "pipx", ["run", *rest]:
            return _read_uvx(rest)
        case name, rest if name in _UVX:
            return _read_uvx(rest)
        case "uv", ["tool", "run", *rest]:
            return _read_uvx(rest)
        case name, ["run", *rest] if name in _DOCKER:
            return _read_docker(rest)
    raise RefusedError(
        "command",
        f"{program or 'it'} runs a program of the machine that the configuration was written on",
        "Name a package (npx, uvx), an image (docker run) or a URL; for a repository use github/<owner>/<repo> in mcp.",
    )


def _program(word: str) -> str:
    return re.split(r"[\\/]", word)[-1].lower().removesuffix(".exe").removesuffix(".cmd")


def _read_npx(words: Sequence[str]) -> PackageCommand | RemoteCommand:
    options, rest = _split(words, _NPX_WITH_VALUE, separator=True)
    spec = options.get("-p") or options.get("--package") or (rest[0] if rest else "")
    if (match := _NPM_SPEC.fullmatch(spec)) is None:
        raise RefusedError("args", f"{spec or 'npx'} names no package of npm", "Name one, with its version.")
    name, version = match.groups()
    bare = name.rpartition("/")[2]
    if bare == "mcp-remote":
        return _read_mcp_remote(rest[1:])
    return PackageCommand(
        registry="npm",
        name=name,
        version=_exact(name, version, f"{name}@1.2.3"),
        program=rest[0] if rest and rest[0] != spec else bare,
        arguments=rest[1:],
    )


def _read_mcp_remote(words: Sequence[str]) -> RemoteCommand:
    if not words:
        raise RefusedError("args", "mcp-remote names no URL", "Give the server's URL.")
    headers: dict[str, str] = {}
    transport: Literal["streamable-http", "sse"] = "streamable-http"
    for flag, value in zip(words[1:], words[2:], strict=False):
        if flag == "--header":
            name, _, content = value.partition(":")
            headers[name.strip()] = content.strip()
        elif flag == "--transport" and value.startswith("sse"):
            transport = "sse"
    return RemoteCommand(url=words[0], headers=headers, transport=transport)


def _read_uvx(words: Sequence[str]) -> PackageCommand:
    options, rest = _split(words, _UVX_WITH_VALUE, separator=False)
    spec = options.get("--from") or options.get("--spec") or (rest[0] if rest else "")
    if (match := _PYPI_SPEC.fullmatch(spec)) is None:
        raise RefusedError(
            "args",
            f"{spec or 'uvx'} names no package of PyPI",
            "Name one, with its version; for a repository use github/<owner>/<repo> in mcp.",
        )
    name, version = match.groups()
    return PackageCommand(
        registry="pypi",
        name=name,
        version=_exact(name, version, f"{name}@1.2.3"),
        program=rest[0] if rest and rest[0] != spec else name,
        arguments=rest[1:],
    )


def _exact(name: str, version: str | None, example: str) -> str:
    if version is None or _EXACT.fullmatch(version) is None:
        what = f"asks for {name} {version}" if version else f"names no version of {name}"
        raise RefusedError("args", f"{what}, and servers here never change by themselves", f"Pin one: {example}.")
    return version.removeprefix("v")


def _read_docker(words: Sequence[str]) -> ImageCommand:
    command = ImageCommand()
    position = 0
    while position < len(words) and words[position].startswith("-"):
        flag, given, value = words[position].partition("=")
        position += 1
        if flag in _DOCKER_WITHOUT_VALUE:
            continue
        if flag == "--privileged":
            command.host_access["privileged"] = True
            continue
        if not given and position < len(words):
            value = words[position]
            position += 1
        _put_docker_option(command, flag, value)
    if position >= len(words):
        raise RefusedError("args", "docker run names no image", "Name one.")
    command.image = words[position]
    command.arguments = words[position + 1 :]
    return command


def _put_docker_option(command: ImageCommand, flag: str, value: str) -> None:
    match flag:
        case "-e" | "--env":
            name, equals, content = value.partition("=")
            command.env[name] = content if equals else None
        case "-v" | "--volume":
            command.volumes.append(value)
        case "--mount":
            parts = dict(part.partition("=")[::2] for part in value.split(","))
            source = parts.get("src") or parts.get("source") or ""
            target = parts.get("dst") or parts.get("target") or parts.get("destination") or ""
            command.volumes.append(f"{source}:{target}")
        case "-u" | "--user":
            command.user = value
        case _ if flag in _DOCKER_HOST:
            command.host_access[flag.lstrip("-")] = value
        case _:
            command.left_out.append(flag)


def _split(words: Sequence[str], with_value: Sequence[str], *, separator: bool) -> tuple[dict[str, str], list[str]]:
    """The options in front with their values, and the rest."""
    options: dict[str, str] = {}
    position = 0
    while position < len(words) and words[position].startswith("-"):
        flag, equals, value = words[position].partition("=")
        position += 1
        if separator and flag == "--":
            break
        if flag in with_value and not equals and position < len(words):
            value = words[position]
            position += 1
        options[flag] = value
    return options, list(words[position:])
