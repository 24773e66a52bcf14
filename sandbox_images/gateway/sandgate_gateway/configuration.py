"""What `PUT /config` says, checked and frozen. Lives in memory only: it holds credentials."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sandgate_gateway.fields import (
    ConfigurationError,
    boolean,
    list_of_any,
    mapping,
    objects,
    one_of,
    optional_string,
    string,
    string_map,
    strings,
)
from sandgate_gateway.lists import KINDS, Item, Offer
from sandgate_gateway.naming import Naming
from sandgate_gateway.protocol import LATEST_LEGACY_VERSION
from sandgate_gateway.tool_rules import ALL_TOOLS, ToolRules, parse_tool_rules

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


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
class BridgeTransport:
    """A server in a container of its own, whose stdio bridge calls at the gateway's socket."""

    token: str = field(repr=False)
    """What the bridge greets with."""


@dataclass(frozen=True)
class HttpTransport:
    """A remote server that speaks streamable HTTP, or turns out to speak HTTP+SSE only."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    allow_private: bool = False
    """Plain http and addresses that are not public may be used."""


@dataclass(frozen=True)
class SseTransport:
    """A remote server that speaks HTTP+SSE, the transport of 2024-11-05."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    allow_private: bool = False


@dataclass(frozen=True)
class ContainersTransport:
    """No server at all: each call of a tool is a container that the control plane runs."""

    tools: tuple[Item, ...]
    """As they are listed."""


Transport = StdioTransport | WorkspaceTransport | BridgeTransport | HttpTransport | SseTransport | ContainersTransport

Start = Literal["eager", "lazy"]


@dataclass(frozen=True)
class ServerDefinition:
    name: str
    transport: Transport
    start_timeout_s: float
    start: Start = "eager"
    remembered: Offer | None = field(repr=False, default=None)
    """What the server offered when it ran before; it is listed with it until it is ready."""
    tools: ToolRules = ALL_TOOLS

    def runs_like(self, other: "ServerDefinition") -> bool:
        """Whether a server that runs by the other definition need not be restarted for this one."""
        return self.name == other.name and self.transport == other.transport

    @property
    def starts_lazily(self) -> bool:
        """A server nobody remembers has to start, because nothing else tells what it offers."""
        return self.start == "lazy" and self.remembered is not None

    @property
    def may_wait_in_line(self) -> bool:
        """Its start takes the processors of this machine, and nobody has to wait for it."""
        is_remote = isinstance(self.transport, HttpTransport | SseTransport)
        return self.start == "eager" and self.remembered is not None and not is_remote

    @property
    def secrets(self) -> list[str]:
        """Values that must not appear in anything a person reads."""
        match self.transport:
            case StdioTransport(env=values) | WorkspaceTransport(env=values):
                return list(values.values())
            case HttpTransport(headers=values) | SseTransport(headers=values):
                return list(values.values())
            case BridgeTransport(token=token):
                return [token]
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
    discovery: bool = False
    """List the three tools of discovery instead of all tools."""
    stdio_door: StdioDoor | None = None
    servers: tuple[ServerDefinition, ...] = ()


def parse_configuration(body: Any) -> Configuration:
    """Raises: ConfigurationError that names the field, never its value."""
    top = mapping(body, "the body")
    servers = tuple(
        _server(entry, f"servers[{i}]") for i, entry in enumerate(list_of_any(top.get("servers", []), "servers"))
    )
    names = [server.name for server in servers]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigurationError(f"servers: the name {twice!r} is used twice")
    door = _door(top["stdioDoor"]) if top.get("stdioDoor") is not None else None
    if door is None and (lost := next((s for s in servers if isinstance(s.transport, WorkspaceTransport)), None)):
        raise ConfigurationError(f"servers: {lost.name!r} runs in the workspace, but stdioDoor is missing")
    return Configuration(
        tokens=strings(top.get("tokens", []), "tokens"),
        naming=one_of(top.get("naming", "auto"), ("auto", "always"), "naming"),
        public_hosts=tuple(host.lower() for host in strings(top.get("publicHosts", []), "publicHosts")),
        discovery=boolean(top.get("discovery"), "discovery"),
        stdio_door=door,
        servers=servers,
    )


def _server(entry: Any, where: str) -> ServerDefinition:
    server = mapping(entry, where)
    name = string(server.get("name"), f"{where}.name")
    if not _NAME.fullmatch(name) or ".." in name:
        raise ConfigurationError(f"{where}.name must be 1 to 128 letters, digits, '.', '_', '-' or '/'")
    where = f"server {name!r}"
    timeout = server.get("startTimeoutS", 30)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= 3600:
        raise ConfigurationError(f"{where}: startTimeoutS must be a number of seconds above 0 and at most 3600")
    return ServerDefinition(
        name,
        _transport(mapping(server.get("transport"), f"{where}: transport"), where),
        timeout,
        start=one_of(server.get("start", "eager"), ("eager", "lazy"), f"{where}: start"),
        remembered=_remembered(server.get("remembered"), f"{where}: remembered"),
        tools=parse_tool_rules(server.get("tools"), f"{where}: tools"),
    )


def _remembered(value: Any, where: str) -> Offer | None:
    if value is None:
        return None
    offer = mapping(value, where)
    return Offer(
        lists={kind: objects(offer.get(kind, []), f"{where}.{kind}") for kind in KINDS},
        capabilities=dict(mapping(offer.get("capabilities", {}), f"{where}.capabilities")),
        instructions=optional_string(offer.get("instructions") or None, f"{where}.instructions") or "",
        era=one_of(offer.get("era", "legacy"), ("legacy", "modern"), f"{where}.era"),
        protocol_version=string(offer.get("protocolVersion", LATEST_LEGACY_VERSION), f"{where}.protocolVersion"),
    )


def _transport(transport: Mapping[str, Any], where: str) -> Transport:
    match transport.get("type"):
        case "stdio":
            return StdioTransport(_command(transport, where), string_map(transport.get("env"), f"{where}: env"))
        case "workspace":
            return WorkspaceTransport(
                command=_command(transport, where),
                env=string_map(transport.get("env"), f"{where}: env"),
                cwd=optional_string(transport.get("cwd"), f"{where}: cwd"),
                user=string(transport.get("user", "user"), f"{where}: user"),
                repository=optional_string(transport.get("repository"), f"{where}: repository"),
                install=optional_string(transport.get("install"), f"{where}: install"),
            )
        case "bridge":
            return BridgeTransport(string(transport.get("token"), f"{where}: token"))
        case "containers":
            tools = objects(transport.get("tools"), f"{where}: tools")
            for index, tool in enumerate(tools):
                string(tool.get("name"), f"{where}: tools[{index}].name")
                mapping(tool.get("inputSchema"), f"{where}: tools[{index}].inputSchema")
            return ContainersTransport(tuple(tools))
        case "http" | "sse" as kind:
            url = string(transport.get("url"), f"{where}: url")
            if not url.startswith(("http://", "https://")):
                raise ConfigurationError(f"{where}: url must start with http:// or https://")
            headers = string_map(transport.get("headers"), f"{where}: headers")
            allow_private = boolean(transport.get("allowPrivate"), f"{where}: allowPrivate")
            return (HttpTransport if kind == "http" else SseTransport)(url, headers, allow_private)
        case _:
            raise ConfigurationError(
                f'{where}: transport.type must be "stdio", "workspace", "bridge", "containers", "http" or "sse"'
            )


def _door(value: Any) -> StdioDoor:
    door = mapping(value, "stdioDoor")
    port = door.get("port")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        raise ConfigurationError("stdioDoor.port must be a port number")
    return StdioDoor(
        string(door.get("host", "127.0.0.1"), "stdioDoor.host"), port, string(door.get("token"), "stdioDoor.token")
    )


def _command(transport: Mapping[str, Any], where: str) -> tuple[str, ...]:
    command = strings(transport.get("command"), f"{where}: command")
    if not command:
        raise ConfigurationError(f"{where}: command must not be empty")
    return command
