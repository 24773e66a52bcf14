"""From a request to a plan: which containers a sandbox is made of and how its gateway is configured.

Pure: no I/O, no clock, nothing random but the tokens of image servers. Most rules of the product are here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, get_args

import orjson

from app.catalog import (
    Capability,
    Catalog,
    ContainerToolsRun,
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
from app.catalog.rehearsals import rehearsed_fingerprints
from app.engines.interface import ContainerSpec, EgressRules, Limits, PodSpec, VolumeMount
from app.errors import InvalidRequest
from app.ids_and_time import new_token
from app.packages import STORE_MOUNT
from app.sandboxes.gateway_plan import ContainerTools, GatewayPlan
from app.sandboxes.models import CreateSandbox, McpOptions, PodRecord
from app.sandboxes.server_containers import GATEWAY_VOLUMES, free_role, limits_of, server_container
from app.templates import ResolvedTemplate

CONTROL_TOKEN_DIGEST = "SANDGATE_CONTROL_TOKEN_SHA256"
"""The variable by which agent and gateway know their control token when they see it. It tells nobody the token."""
VOLUME_LABEL = "volume"
"""Of the pods that serve a volume's files (`app.volumes`); they belong to no sandbox and have no row."""
STDIO_DOOR_PORT = 49984

_POD_START_S = 60.0

WORKSPACE_CAPABILITIES: tuple[str, ...] = get_args(Capability)
"""What sudo and package managers need; nothing of it reaches outside the container."""
_GATEWAY_CAPABILITIES = ("CHOWN", "KILL", "SETGID", "SETUID")
"""Enough to run each MCP server under a uid of its own and to end it."""
_GATEWAY_LIMITS = Limits(memory_mib=2048, cpus=2.0, pids=512, cpu_shares=4096)
"""A gateway does little, and somebody waits for it: it goes before what runs in workspaces, whosever they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """The operator's facts that a plan depends on."""

    workspace_image: str
    gateway_image: str
    workspace_limits: Limits
    server_start_timeout_s: float
    github_url: str


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
        to the pod when it is claimed, or added to it: environment, metadata, MCP servers.
        """
        made_from = orjson.dumps((self.containers, self.egress), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(made_from).hexdigest()


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
        trusted = ContainerSpec(
            role="gateway",
            image=blueprint.gateway_image,
            limits=_GATEWAY_LIMITS,
            capabilities=_GATEWAY_CAPABILITIES,
            volumes=GATEWAY_VOLUMES,
            mounts=(STORE_MOUNT,),
        )
        containers = (trusted, workspace)
        deadline_s += max((server["startTimeoutS"] for server in gateway.servers), default=0.0)
    return SandboxPlan(
        containers=containers,
        egress=request.network.allow_internet_access or bool(request.network.allow_out),
        egress_rules=request.network.egress,
        gateway=gateway,
        deadline_s=deadline_s,
    )


def plan_gateway(
    mcp: Mapping[str, Mapping[str, Any]],
    options: McpOptions,
    catalog: Catalog,
    blueprint: Blueprint,
    *,
    earlier: GatewayPlan | None = None,
    unchanged: Collection[str] = (),
) -> GatewayPlan:
    """What `earlier` says of the servers that are `unchanged` is kept, whatever the catalog says today.

    Raises: InvalidRequest, naming the server and the field.
    """
    if unplaced := [key for key in options.placement if key not in mcp]:
        raise InvalidRequest(f"mcpOptions.placement names {unplaced[0]!r}, which is not in mcp.")
    if unknown := [key for key in options.tools if key not in mcp]:
        raise InvalidRequest(f"mcpOptions.tools names {unknown[0]!r}, which is not in mcp.")
    leaving = earlier.image_servers if earlier is not None else {}
    kept = earlier.only(unchanged) if earlier is not None else GatewayPlan()
    servers = {server["name"]: server for server in kept.servers}
    image_servers = dict(kept.image_servers)
    container_tools = dict(kept.container_tools)
    fingerprints = dict(kept.fingerprints)
    packages = dict(kept.packages)
    for key, given in mcp.items():
        if key in servers:
            continue
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
                    "command": list(run.command),
                    "env": dict(run.env),
                    "cwd": run.cwd,
                    "repository": run.repository,
                    "install": run.install,
                }
            case PackageRun() as run:
                transport = {"type": "stdio", "command": list(run.command), "env": dict(run.env)}
            case ImageRun() as run:
                role = free_role([*image_servers.values(), *leaving.values()])
                token = new_token()
                image_servers[key] = server_container(role, run, token)
                transport = {"type": "bridge", "token": token}
            case ContainerToolsRun() as run:
                container_tools[key] = ContainerTools(
                    tools=run.tools, env=run.env, limits=limits_of(run), has_network=not run.disable_network
                )
                listed = [
                    {"name": tool.name, "description": tool.description, "inputSchema": tool.input_schema}
                    for tool in run.tools
                ]
                transport = {"type": "containers", "tools": listed}
            case RemoteRun() as run:
                kind = "sse" if run.transport_type == "sse" else "http"
                transport = {"type": kind, "url": run.url, "headers": dict(run.headers)}
                if run.allow_private:
                    transport["allowPrivate"] = True
        servers[key] = {
            "name": key,
            "startTimeoutS": rendered.start_timeout_s or blueprint.server_start_timeout_s,
            "transport": transport,
        }
    return GatewayPlan(
        servers=tuple(servers[key] for key in mcp),
        image_servers=image_servers,
        container_tools=container_tools,
        fingerprints=fingerprints,
        packages=packages,
    )


def find_rehearsals(
    plan: GatewayPlan,
    mcp: Mapping[str, Mapping[str, Any]],
    options: McpOptions,
    catalog: Catalog,
    *,
    besides: Collection[str],
) -> dict[str, list[str]]:
    """Server key -> fingerprints of rehearsals that list what it will list, of the plan's servers but for `besides`."""
    found = {}
    for key in plan.fingerprints.keys() - besides:
        definition = catalog.find(key)
        # What the plan was made from counts, and the catalog may say something else by now, or refuse the options.
        with suppress(OptionError):
            if definition is not None and plan.fingerprints[key] == _fingerprint(
                key, mcp.get(key, {}), options, catalog
            ):
                found[key] = rehearsed_fingerprints(definition, mcp.get(key, {}), placement=options.placement.get(key))
    return found


def check_known(keys: Iterable[str], catalog: Catalog) -> None:
    """Raises: InvalidRequest for the first key that neither is in the catalog nor names a repository."""
    for key in keys:
        if not is_custom_key(key):
            _find(key, catalog)


def make_pod_spec(plan: SandboxPlan, pod: PodRecord) -> PodSpec:
    """The plan as the engine takes it, with what each container needs to know of its control token."""
    tokens = {"workspace": pod.secrets.agent_token, "gateway": pod.secrets.gateway_token}
    return PodSpec(
        pod_id=pod.id,
        containers=tuple(
            replace(container, env={**container.env, **control_environment(tokens[container.role])})
            for container in plan.containers
        ),
        egress=plan.egress,
        egress_rules=plan.egress_rules,
    )


def control_environment(token: str) -> dict[str, str]:
    """What a container of an agent or a gateway is made with. docs/ARCHITECTURE.md, section 6.1."""
    return {CONTROL_TOKEN_DIGEST: hashlib.sha256(token.encode()).hexdigest()}


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
