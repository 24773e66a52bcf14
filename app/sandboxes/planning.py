"""From a request to a plan: which containers a sandbox is made of and how its gateway is configured.

Pure: no I/O, no clock, no randomness. Most rules of the product are here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import orjson

from app.catalog import (
    Catalog,
    ImageRun,
    OptionError,
    PackageRun,
    RemoteRun,
    RenderedServer,
    ServerDefinition,
    is_custom_key,
    is_inline,
    list_fingerprint,
    render,
    render_custom,
    render_inline,
)
from app.catalog.package import Package
from app.engines.interface import ContainerSpec, EgressRules, File, Limits, PodSpec, VolumeMount
from app.errors import InvalidRequest
from app.packages import STORE_MOUNT
from app.sandboxes.models import CreateSandbox, McpOptions, PodRecord
from app.templates import ResolvedTemplate

AGENT_TOKEN_FILE = "/run/sandgate/agent-control-token"
VOLUME_LABEL = "volume"
"""Of the pods that serve a volume's files (`app.volumes`); they belong to no sandbox and have no row."""
GATEWAY_TOKEN_FILE = "/run/sandgate/gateway-control-token"
STDIO_BRIDGE = "/opt/sandgate/stdio-bridge"
"""Where the gateway's image keeps the program that becomes the entrypoint of image servers."""
STDIO_DOOR_PORT = 49984

_BRIDGE_IN_SERVER = "/.sandgate/stdio-bridge"
_SOCKET_DIRECTORY = "/run/sandgate-server"
_POD_START_S = 60.0

WORKSPACE_CAPABILITIES = (
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
)
"""Docker's default set without NET_RAW and MKNOD: what sudo and package managers need."""
_GATEWAY_CAPABILITIES = ("CHOWN", "KILL", "SETGID", "SETUID")
"""Enough to run each MCP server under a uid of its own and to end it."""
_GATEWAY_LIMITS = Limits(memory_mib=2048, cpus=2.0, pids=512)
_SERVER_LIMITS = Limits(memory_mib=1024, cpus=1.0, pids=256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """The operator's facts that a plan depends on."""

    workspace_image: str
    gateway_image: str
    workspace_limits: Limits
    server_start_timeout_s: float
    github_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPlan:
    servers: tuple[Mapping[str, Any], ...] = field(repr=False)
    """`servers` of the gateway's configuration; docs/ARCHITECTURE.md, section 6.4."""
    image_servers: tuple[ContainerSpec, ...]
    fingerprints: Mapping[str, str]
    """Server key -> what its lists depend on; only those whose lists may be remembered."""
    packages: Mapping[str, Package]
    """Server key -> what has to be installed before it starts."""

    @property
    def needs_workspace(self) -> bool:
        """Whether a server runs in the workspace."""
        return any(server["transport"]["type"] == "workspace" for server in self.servers)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPlan:
    containers: tuple[ContainerSpec, ...]
    egress: bool
    egress_rules: EgressRules
    gateway: GatewayPlan | None
    deadline_s: float
    """How long the whole start may take."""

    @property
    def workspace(self) -> ContainerSpec:
        return next(container for container in self.containers if container.role == "workspace")

    @property
    def recipe(self) -> str:
        """What the pod's containers are made from, as a digest: pods of one recipe differ in nothing but their tokens.

        So a pod that was made before anybody asked for it serves every plan of its recipe. What is not in here is told
        to the pod when it is claimed: environment, metadata, MCP servers that are packages or remote.
        """
        made_from = orjson.dumps((self.containers, self.egress), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(made_from).hexdigest()

    def server_of_image(self, image: str) -> str | None:
        """Key of an MCP server that runs from this image."""
        if self.gateway is None:
            return None
        paths = {_socket_path(server.role) for server in self.gateway.image_servers if server.image == image}
        return next((s["name"] for s in self.gateway.servers if s["transport"].get("path") in paths), None)


def plan_sandbox(
    request: CreateSandbox, template: ResolvedTemplate, catalog: Catalog, blueprint: Blueprint
) -> SandboxPlan:
    """Raises: InvalidRequest (an MCP server, named with the field at fault)."""
    default = blueprint.workspace_limits
    workspace = ContainerSpec(
        role="workspace",
        image=template.image or blueprint.workspace_image,
        limits=Limits(
            memory_mib=template.memory_mib or default.memory_mib,
            cpus=template.cpus or default.cpus,
            pids=default.pids,
        ),
        new_privileges=True,
        capabilities=WORKSPACE_CAPABILITIES,
        mounts=(STORE_MOUNT, *(VolumeMount(volume=mount.volume_id, path=mount.path) for mount in request.mounts)),
    )
    gateway: GatewayPlan | None = None
    containers: tuple[ContainerSpec, ...] = (workspace,)
    deadline_s = _POD_START_S
    if request.mcp is not None or template.has_gateway:
        gateway = plan_gateway(request.mcp or {}, request.mcp_options, catalog, blueprint)
        sockets = {server.role: f"/run/servers/{server.role}" for server in gateway.image_servers}
        trusted = ContainerSpec(
            role="gateway",
            image=blueprint.gateway_image,
            limits=_GATEWAY_LIMITS,
            capabilities=_GATEWAY_CAPABILITIES,
            volumes=sockets,
            mounts=(STORE_MOUNT,),
        )
        containers = (trusted, workspace, *gateway.image_servers)
        deadline_s += max((server["startTimeoutS"] for server in gateway.servers), default=0.0)
    return SandboxPlan(
        containers=containers,
        egress=request.network.allow_internet_access or bool(request.network.allow_out),
        egress_rules=request.network.egress,
        gateway=gateway,
        deadline_s=deadline_s,
    )


def plan_gateway(
    mcp: Mapping[str, Mapping[str, Any]], options: McpOptions, catalog: Catalog, blueprint: Blueprint
) -> GatewayPlan:
    """Raises: InvalidRequest, naming the server and the field."""
    if unplaced := [key for key in options.placement if key not in mcp]:
        raise InvalidRequest(f"mcpOptions.placement names {unplaced[0]!r}, which is not in mcp.")
    if unknown := [key for key in options.tools if key not in mcp]:
        raise InvalidRequest(f"mcpOptions.tools names {unknown[0]!r}, which is not in mcp.")
    servers: list[Mapping[str, Any]] = []
    image_servers: list[ContainerSpec] = []
    fingerprints: dict[str, str] = {}
    packages: dict[str, Package] = {}
    for key, given in mcp.items():
        rendered = _render(key, given, options, catalog, blueprint)
        if (fingerprint := _fingerprint(key, given, options, catalog)) is not None:
            fingerprints[key] = fingerprint
        if isinstance(rendered.run, PackageRun) and rendered.run.package is not None:
            packages[key] = rendered.run.package
        transport: dict[str, Any]
        match rendered.run:
            case PackageRun(placement="workspace") as run:
                transport = {
                    "type": "workspace",
                    "command": run.command,
                    "env": run.env,
                    "cwd": run.cwd,
                    "repository": run.repository,
                    "install": run.install,
                }
            case PackageRun() as run:
                transport = {"type": "stdio", "command": run.command, "env": run.env}
            case ImageRun() as run:
                role = f"server-{len(image_servers)}"
                image_servers.append(_image_server(role, run))
                transport = {"type": "socket", "path": _socket_path(role)}
            case RemoteRun() as run:
                kind = "sse" if run.transport_type == "sse" else "http"
                transport = {"type": kind, "url": run.url, "headers": run.headers}
                if run.allow_private:
                    transport["allowPrivate"] = True
        servers.append(
            {
                "name": key,
                "startTimeoutS": rendered.start_timeout_s or blueprint.server_start_timeout_s,
                "transport": transport,
            }
        )
    return GatewayPlan(
        servers=tuple(servers), image_servers=tuple(image_servers), fingerprints=fingerprints, packages=packages
    )


def check_known(keys: Iterable[str], catalog: Catalog) -> None:
    """Raises: InvalidRequest for the first key that neither is in the catalog nor names a repository."""
    for key in keys:
        if not is_custom_key(key):
            _find(key, catalog)


def make_pod_spec(plan: SandboxPlan, pod: PodRecord, stdio_bridge: bytes | None) -> PodSpec:
    """The plan as the engine takes it, with the pod's control tokens as files.

    `stdio_bridge` is the program's content, needed if the plan has image servers.
    """
    files = {
        "workspace": (File(path=AGENT_TOKEN_FILE, content=pod.secrets.agent_token.encode()),),
        "gateway": (File(path=GATEWAY_TOKEN_FILE, content=pod.secrets.gateway_token.encode()),),
    }
    if plan.gateway is not None and plan.gateway.image_servers:
        if stdio_bridge is None:
            raise ValueError("a plan with image servers needs the stdio bridge")
        bridge = File(path=_BRIDGE_IN_SERVER, content=stdio_bridge, mode=0o555)
        files |= {server.role: (bridge,) for server in plan.gateway.image_servers}
    return PodSpec(
        pod_id=pod.id,
        containers=tuple(replace(container, files=files[container.role]) for container in plan.containers),
        egress=plan.egress,
        egress_rules=plan.egress_rules,
    )


def make_gateway_config(
    plan: GatewayPlan,
    options: McpOptions,
    pod: PodRecord,
    tokens: Iterable[str],
    *,
    remembered: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The body of `PUT /config`; docs/ARCHITECTURE.md, section 6.4.

    `remembered` holds, by server key, what it listed when it was last started.
    """
    servers = []
    for server in plan.servers:
        key = server["name"]
        more: dict[str, Any] = {}
        if options.start == "lazy":
            more["start"] = "lazy"
        if key in remembered:
            more["remembered"] = remembered[key]
        if key in options.tools:
            more["tools"] = options.tools[key]
        servers.append({**server, **more})
    return {
        "tokens": list(tokens),
        "naming": options.naming,
        **({"discovery": True} if options.discovery else {}),
        "stdioDoor": {"host": "127.0.0.1", "port": STDIO_DOOR_PORT, "token": pod.secrets.stdio_token},
        "servers": servers,
    }


def _render(
    key: str, given: Mapping[str, Any], options: McpOptions, catalog: Catalog, blueprint: Blueprint
) -> RenderedServer:
    try:
        if is_custom_key(key):
            return render_custom(key, given, github_url=blueprint.github_url)
        if is_inline(given) and catalog.find(key) is None:
            return render_inline(key, given)
        return render(_find(key, catalog), key, given, placement=options.placement.get(key))
    except OptionError as error:
        raise InvalidRequest(f"Failed to start MCP gateway: {error}") from error


def _fingerprint(key: str, given: Mapping[str, Any], options: McpOptions, catalog: Catalog) -> str | None:
    """Of a server that can be rendered; None for what nobody knows beforehand, as a repository that changes."""
    definition = None if is_custom_key(key) else catalog.find(key)
    if definition is None:
        return None
    return list_fingerprint(definition, key, given, placement=options.placement.get(key))


def _find(key: str, catalog: Catalog) -> ServerDefinition:
    definition = catalog.find(key)
    if definition is None:
        nearest = " or ".join(map(repr, catalog.nearest_few(key)))
        hint = f" Did you mean {nearest}?" if nearest else ""
        raise InvalidRequest(
            f"Failed to start MCP gateway: there is no MCP server {key!r} in the catalog.{hint}"
            " GET /api/v1/catalog lists all of them."
        )
    return definition


def _socket_path(role: str) -> str:
    """Where the gateway finds the socket of an image server."""
    return f"/run/servers/{role}/stdio.sock"


def _operator_volume(text: str) -> VolumeMount:
    """A prefix of their own keeps these volumes apart from those that Sandgate makes."""
    name, path, *mode = text.split(":")
    return VolumeMount(volume=f"own-{name}", path=path, read_only=mode == ["ro"], shared=True)


def _image_server(role: str, run: ImageRun) -> ContainerSpec:
    limits = Limits(
        memory_mib=run.limits.memory_mib or _SERVER_LIMITS.memory_mib,
        cpus=run.limits.cpus or _SERVER_LIMITS.cpus,
        pids=run.limits.pids or _SERVER_LIMITS.pids,
    )
    own = {f"{role}-{name}": path for name, _, path in (volume.partition(":") for volume in run.volumes)}
    return ContainerSpec(
        role=role,
        image=run.image,
        limits=limits,
        entrypoint_prefix=(_BRIDGE_IN_SERVER, f"{_SOCKET_DIRECTORY}/stdio.sock", "--"),
        command=run.command or None,
        env=run.env,
        volumes={role: _SOCKET_DIRECTORY, **own},
        mounts=tuple(map(_operator_volume, run.operator_volumes)),
        user=run.user,
    )
