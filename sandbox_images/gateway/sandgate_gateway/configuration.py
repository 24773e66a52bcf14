"""What `PUT /config` says, checked and frozen. Lives in memory only: it holds credentials."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sandgate_gateway.naming import Naming

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


class ConfigurationError(Exception):
    """The body of `PUT /config` is not a configuration; the message names the field."""


@dataclass(frozen=True)
class StdioTransport:
    """A program the gateway starts itself."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class WorkspaceTransport:
    """A program the agent starts in the workspace and serves at its stdio door."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str | None
    user: str
    repository: str | None
    install: str | None


@dataclass(frozen=True)
class SocketTransport:
    """A server in a container of its own, behind a stdio bridge on a unix socket."""

    path: str


@dataclass(frozen=True)
class HttpTransport:
    """A remote server that speaks streamable HTTP."""

    url: str
    headers: Mapping[str, str] = field(repr=False)


Transport = StdioTransport | WorkspaceTransport | SocketTransport | HttpTransport


@dataclass(frozen=True)
class ServerDefinition:
    name: str
    transport: Transport
    start_timeout_s: float

    @property
    def secrets(self) -> list[str]:
        """Values that must not appear in anything a person reads."""
        match self.transport:
            case StdioTransport(env=values) | WorkspaceTransport(env=values) | HttpTransport(headers=values):
                return list(values.values())
            case _:
                return []


@dataclass(frozen=True)
class StdioDoor:
    """Where the agent of the workspace serves stdio programs."""

    host: str
    port: int
    token: str = field(repr=False)


@dataclass(frozen=True)
class Configuration:
    tokens: tuple[str, ...] = field(repr=False, default=())
    naming: Naming = "auto"
    public_hosts: tuple[str, ...] = ()
    """Host names, without port, under which browsers may know this gateway; `*.example.com` covers subdomains."""
    stdio_door: StdioDoor | None = None
    servers: tuple[ServerDefinition, ...] = ()


def parse_configuration(body: Any) -> Configuration:
    """Raises: ConfigurationError that names the field, never its value."""
    top = _mapping(body, "the body")
    naming = top.get("naming", "auto")
    if naming not in ("auto", "always"):
        raise ConfigurationError('naming must be "auto" or "always"')
    servers = tuple(_server(entry, f"servers[{i}]") for i, entry in enumerate(_list(top.get("servers", []), "servers")))
    names = [server.name for server in servers]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigurationError(f"servers: the name {twice!r} is used twice")
    door = _door(top["stdioDoor"]) if top.get("stdioDoor") is not None else None
    if door is None and (lost := next((s for s in servers if isinstance(s.transport, WorkspaceTransport)), None)):
        raise ConfigurationError(f"servers: {lost.name!r} runs in the workspace, but stdioDoor is missing")
    return Configuration(
        tokens=_strings(top.get("tokens", []), "tokens"),
        naming=naming,
        public_hosts=tuple(host.lower() for host in _strings(top.get("publicHosts", []), "publicHosts")),
        stdio_door=door,
        servers=servers,
    )


def _server(entry: Any, where: str) -> ServerDefinition:
    server = _mapping(entry, where)
    name = _string(server.get("name"), f"{where}.name")
    if not _NAME.fullmatch(name) or ".." in name:
        raise ConfigurationError(f"{where}.name must be 1 to 128 letters, digits, '.', '_', '-' or '/'")
    where = f"server {name!r}"
    timeout = server.get("startTimeoutS", 30)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= 3600:
        raise ConfigurationError(f"{where}: startTimeoutS must be a number of seconds above 0 and at most 3600")
    return ServerDefinition(name, _transport(_mapping(server.get("transport"), f"{where}: transport"), where), timeout)


def _transport(transport: Mapping[str, Any], where: str) -> Transport:
    match transport.get("type"):
        case "stdio":
            return StdioTransport(_command(transport, where), _environment(transport.get("env"), f"{where}: env"))
        case "workspace":
            return WorkspaceTransport(
                command=_command(transport, where),
                env=_environment(transport.get("env"), f"{where}: env"),
                cwd=_optional_string(transport.get("cwd"), f"{where}: cwd"),
                user=_string(transport.get("user", "user"), f"{where}: user"),
                repository=_optional_string(transport.get("repository"), f"{where}: repository"),
                install=_optional_string(transport.get("install"), f"{where}: install"),
            )
        case "socket":
            return SocketTransport(_string(transport.get("path"), f"{where}: path"))
        case "http":
            url = _string(transport.get("url"), f"{where}: url")
            if not url.startswith(("http://", "https://")):
                raise ConfigurationError(f"{where}: url must start with http:// or https://")
            return HttpTransport(url, _environment(transport.get("headers"), f"{where}: headers"))
        case _:
            raise ConfigurationError(f'{where}: transport.type must be "stdio", "workspace", "socket" or "http"')


def _door(value: Any) -> StdioDoor:
    door = _mapping(value, "stdioDoor")
    port = door.get("port")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        raise ConfigurationError("stdioDoor.port must be a port number")
    return StdioDoor(
        _string(door.get("host", "127.0.0.1"), "stdioDoor.host"), port, _string(door.get("token"), "stdioDoor.token")
    )


def _command(transport: Mapping[str, Any], where: str) -> tuple[str, ...]:
    command = _strings(transport.get("command"), f"{where}: command")
    if not command:
        raise ConfigurationError(f"{where}: command must not be empty")
    return command


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where} must be an object")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigurationError(f"{where} must be a list")
    return value


def _strings(value: Any, where: str) -> tuple[str, ...]:
    entries = _list(value, where)
    if not all(isinstance(entry, str) for entry in entries):
        raise ConfigurationError(f"{where} must be a list of strings")
    return tuple(entries)


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{where} must be a string that is not empty")
    return value


def _optional_string(value: Any, where: str) -> str | None:
    return None if value is None else _string(value, where)


def _environment(value: Any, where: str) -> Mapping[str, str]:
    entries = _mapping({} if value is None else value, where)
    if not all(isinstance(entry, str) for entry in entries.values()):
        raise ConfigurationError(f"{where} must map names to strings")
    return dict(entries)
