"""What a sandbox's gateway is told: its servers, with what is remembered of them, and later changes of both."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
import structlog

from app.catalog import Catalog
from app.engines.interface import Engine
from app.packages import PackageStore
from app.sandboxes.directory import Directory
from app.sandboxes.failures import raise_for, raise_unless_up
from app.sandboxes.gateway_plan import GatewayPlan
from app.sandboxes.image_pulls import ImagePulls
from app.sandboxes.models import LiveSandbox, McpOptions, PodRecord, Sandbox, ServerStatus
from app.sandboxes.planning import Blueprint, check_known, find_rehearsals, make_gateway_config, plan_gateway
from app.sandboxes.pod_clients import AnswerRefusedError, GatewayClient, PodUnreachableError
from app.sandboxes.server_containers import STDIO_BRIDGE, with_bridge
from app.sandboxes.server_lists import Lists
from app.sandboxes.server_preparation import prepare_servers
from app.sandboxes.servers_aside import ServersAside
from app.sandboxes.store import Store
from app.sandboxes.tool_memory import ToolMemory
from app.sandboxes.tool_search import ToolSearch

_START_WAIT_S = 120.0
"""The gateway itself gives up on a server after its own start time-out, well before this."""

_log = structlog.get_logger()


class GatewaySetup:
    def __init__(
        self,
        *,
        store: Store,
        engine: Engine,
        gateways: GatewayClient,
        pulls: ImagePulls,
        memory: ToolMemory,
        packages: PackageStore,
        directory: Directory,
        catalog: Catalog,
        blueprint: Blueprint,
    ) -> None:
        self._store = store
        self._engine = engine
        self._gateways = gateways
        self._pulls = pulls
        self._memory = memory
        self._packages = packages
        self._directory = directory
        self._catalog = catalog
        self._blueprint = blueprint
        self._search = ToolSearch(memory, catalog)
        self._aside = ServersAside()
        self._stdio_bridge: bytes | None = None

    # -- before the gateway is told ---------------------------------------------------------------------------------

    async def prepare(self, sandbox: Sandbox) -> Sandbox:
        """Make sure that what its servers need is installed or pulled; gives the sandbox with those that have it.

        Raises: EngineError, ServerStartFailed if a failure fails the whole.
        """
        planned = _plan_of(sandbox)
        plan = await self._fetch(sandbox, planned, planned.keys)
        return sandbox if plan == planned else await self._record(sandbox, plan)

    async def _fetch(self, sandbox: Sandbox, plan: GatewayPlan, keys: Collection[str]) -> GatewayPlan:
        """The plan without those of `keys` that could not be had."""
        fetched = plan.only(keys)
        self._aside.begin(sandbox.id, fetched.fetched_keys)
        try:
            prepared = await prepare_servers(
                self._packages,
                self._pulls,
                lambda key, line: self._aside.tell(sandbox.id, key, line),
                packages=fetched.packages,
                images=fetched.images(),
            )
            if sandbox.secrets.mcp_options.on_failure == "fail":
                raise_for(prepared.failures)
        finally:
            self._aside.end(sandbox.id, fetched.keys)
        self._aside.fail(sandbox.id, prepared.failures)
        return plan.pinned(prepared.images).without(prepared.failures)

    async def fetch_beforehand(self, keys: Iterable[str], *, wait_s: float) -> None:
        """Install and pull what these servers need. What takes longer goes on; asking again tells how far it is.

        Raises: InvalidRequest (unknown), ServerStartFailed, EngineError.
        """
        keys = list(keys)
        check_known(keys, self._catalog)
        definitions = {key: definition for key in keys if (definition := self._catalog.find(key)) is not None}
        prepared = await prepare_servers(
            self._packages,
            self._pulls,
            lambda key, line: None,
            packages={key: one.package for key, one in definitions.items() if one.package is not None},
            images={key: one.images for key, one in definitions.items()},
            wait_s=wait_s,
        )
        raise_for(prepared.failures, "Not everything could be fetched")

    async def _record(self, sandbox: Sandbox, plan: GatewayPlan) -> Sandbox:
        """Keep what came of a plan, so that it is the same after a restart and a resume."""
        sandbox = replace(sandbox, secrets=replace(sandbox.secrets, gateway=plan))
        await self._store.set_secrets(sandbox)
        return sandbox

    def servers_aside(self, sandbox: Sandbox) -> tuple[ServerStatus, ...]:
        """Those of a sandbox's servers that its gateway is not told of (yet)."""
        return self._aside.states(sandbox)

    def forget(self, sandbox_id: str) -> None:
        """The sandbox is being stopped."""
        self._aside.forget(sandbox_id)

    # -- telling it -------------------------------------------------------------------------------------------------

    async def configure(self, sandbox: Sandbox, pod: PodRecord, address: str) -> list[ServerStatus]:
        """Hand the gateway its configuration, as soon as it listens; the caller bounds the wait. Gives what it answers:
        the states of its servers now."""
        plan = _plan_of(sandbox)
        recalled = await self._recall(sandbox, plan)
        remembered = {server: orjson.Fragment(lists.content) for server, lists in recalled.items()}
        config = make_gateway_config(
            plan, sandbox.secrets.mcp_options, pod, sandbox.secrets.mcp_tokens, remembered=remembered
        )
        return await self._gateways.configure(address, pod.secrets.gateway_token, config)

    async def _recall(self, sandbox: Sandbox, plan: GatewayPlan) -> dict[str, Lists]:
        """By server key, what it is going to list: as it did for this team, or when it was tried beforehand."""
        known = await self._memory.recall(sandbox.team_id, plan.fingerprints.values())
        lists = {server: known[one] for server, one in plan.fingerprints.items() if one in known}
        secrets = sandbox.secrets
        if alike := find_rehearsals(plan, secrets.mcp, secrets.mcp_options, self._catalog, besides=lists):
            rehearsed = await self._memory.rehearsed.find(one for some in alike.values() for one in some)
            for server, fingerprints in alike.items():
                if best := [rehearsed[one] for one in fingerprints if one in rehearsed]:
                    lists[server] = best[0]
        return lists

    async def attach(self, sandbox: Sandbox, pod: PodRecord, address: str) -> Sandbox:
        """Add the containers of image servers to the running pod; gives the sandbox with those that it has.

        Raises: EngineError, PodUnreachableError, ServerStartFailed if a failure fails the whole.
        """
        plan = sandbox.secrets.gateway
        if plan is None or not plan.image_servers:
            return sandbox
        containers = with_bridge(plan.image_servers.values(), await self._bridge())
        refused = await self._engine.attach(pod.id, containers)
        if not refused:
            return sandbox
        failures = {
            key: f"MCP server {key!r} cannot be run in a container: {refused[container.role]}"
            for key, container in plan.image_servers.items()
            if container.role in refused
        }
        if sandbox.secrets.mcp_options.on_failure == "fail":
            raise_for(failures)
        await self._engine.detach(pod.id, refused)
        self._aside.fail(sandbox.id, failures)
        sandbox = await self._record(sandbox, plan.without(failures))
        await self.configure(sandbox, pod, address)
        return sandbox

    async def _bridge(self) -> bytes:
        if self._stdio_bridge is None:
            self._stdio_bridge = await self._engine.read_file(self._blueprint.gateway_image, STDIO_BRIDGE)
        return self._stdio_bridge

    async def settle(
        self, sandbox: Sandbox, pod: PodRecord, address: str, *, known: Sequence[ServerStatus] | None
    ) -> tuple[ServerStatus, ...]:
        """States of the MCP servers, once each can be listed or has failed if the caller wants to wait.

        `known` is what the gateway answered just now, if it did: it is not asked again where nobody waits for more.
        Raises: ServerStartFailed, PodUnreachableError.
        """
        if sandbox.secrets.gateway is None:
            return ()
        waits = sandbox.secrets.mcp_options.wait
        if known is None or (waits and any(server.state == "starting" and not server.listed for server in known)):
            return await self._states(sandbox, pod, address, wait_s=_START_WAIT_S if waits else 0)
        return self._complete(sandbox, known)

    async def _states(
        self, sandbox: Sandbox, pod: PodRecord, address: str, *, wait_s: float
    ) -> tuple[ServerStatus, ...]:
        servers = await self._gateways.status(address, pod.secrets.gateway_token, wait_s=wait_s, until_listed=True)
        return self._complete(sandbox, servers)

    def _complete(self, sandbox: Sandbox, servers: Sequence[ServerStatus]) -> tuple[ServerStatus, ...]:
        """With the servers that the gateway is not told of. Raises: ServerStartFailed."""
        options = sandbox.secrets.mcp_options
        if options.wait and options.on_failure == "fail":
            raise_unless_up(servers)
        return (*servers, *self._aside.states(sandbox))

    # -- remembering what servers list ------------------------------------------------------------------------------

    async def learn(self, sandbox: Sandbox, pod: PodRecord, plan: GatewayPlan, address: str) -> None:
        """Remember what the servers list, once they have started."""
        if not plan.fingerprints:
            return
        token = pod.secrets.gateway_token
        try:
            servers = await self._gateways.status(address, token, wait_s=_START_WAIT_S)
            recalled = await self._memory.recall(sandbox.team_id, plan.fingerprints.values())
            for server in servers:
                fingerprint = plan.fingerprints.get(server.name)
                if fingerprint is None or server.state != "ready" or server.digest is None:
                    continue
                known = recalled.get(fingerprint)
                if known is None or known.digest != server.digest:
                    try:
                        lists = await self._gateways.lists(address, token, server.name)
                    except AnswerRefusedError as error:
                        _log.info("list_not_learned", server=server.name, reason=str(error))
                        continue
                    if not self._is_planned(sandbox.id, server.name, fingerprint):
                        continue  # it was configured anew meanwhile: this may be what it lists now
                    await self._memory.remember(sandbox.team_id, fingerprint, server.name, lists)
                    self._search.put(server.name, lists.content)
        except PodUnreachableError as error:
            # It was killed or paused meanwhile. The next sandbox with these servers teaches the same.
            _log.info("lists_not_learned", sandbox_id=sandbox.id, reason=str(error))

    def _is_planned(self, sandbox_id: str, server: str, fingerprint: str) -> bool:
        """Whether this is still how the sandbox has the server."""
        live = self._directory.find(sandbox_id)
        plan = None if live is None else live.sandbox.secrets.gateway
        return plan is not None and plan.fingerprints.get(server) == fingerprint

    async def make_all_searchable(self) -> None:
        """Let the catalog's search find servers by the tools that are remembered, now and later; until cancelled."""
        await self._search.keep()

    # -- changing it ------------------------------------------------------------------------------------------------

    async def replace_servers(
        self,
        live: LiveSandbox,
        address: str,
        mcp: Mapping[str, Mapping[str, Any]],
        options: McpOptions,
        *,
        caller_token: str | None,
        wait_s: float,
    ) -> tuple[LiveSandbox, tuple[ServerStatus, ...]]:
        """Give a running sandbox other servers; those that are as before go on running, as they were rendered then.

        Raises: InvalidRequest, ServerStartFailed, EngineError, PodUnreachableError.
        """
        old = live.sandbox.secrets
        earlier = _plan_of(live.sandbox)
        placement = {key: value for key, value in options.placement.items() if key in mcp}
        tools = {key: value for key, value in options.tools.items() if key in mcp}
        options = replace(options, placement=placement, tools=tools)
        unchanged = {
            key
            for key in earlier.keys & mcp.keys()
            if old.mcp.get(key) == mcp[key] and old.mcp_options.placement.get(key) == placement.get(key)
        }
        plan = plan_gateway(mcp, options, self._catalog, self._blueprint, earlier=earlier, unchanged=unchanged)
        secrets = replace(old, mcp=mcp, mcp_options=options, caller_mcp_token=caller_token or old.caller_mcp_token)
        sandbox = replace(live.sandbox, secrets=secrets)
        plan = await self._fetch(sandbox, plan, plan.keys - unchanged)
        # Recorded before anything of the pod is changed, so that whoever comes next knows what may be there.
        sandbox = await self._record(sandbox, plan)
        self._directory.change(sandbox.id, secrets=sandbox.secrets)
        stay = {container.role for container in plan.image_servers.values()}
        gone = {container.role for container in earlier.image_servers.values()} - stay
        if gone:
            await self._engine.detach(live.pod.id, gone)
        await self.configure(sandbox, live.pod, address)
        sandbox = await self.attach(sandbox, live.pod, address)
        self._directory.change(sandbox.id, secrets=sandbox.secrets)
        return replace(live, sandbox=sandbox), await self._states(
            sandbox, live.pod, address, wait_s=wait_s if options.wait else 0
        )


def _plan_of(sandbox: Sandbox) -> GatewayPlan:
    plan = sandbox.secrets.gateway
    if plan is None:
        raise ValueError(f"sandbox {sandbox.id} has no gateway")
    return plan
