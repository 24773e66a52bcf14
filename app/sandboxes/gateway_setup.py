"""What a sandbox's gateway is told: its servers, with what is remembered of them, and later changes of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import structlog

from app.catalog import Catalog
from app.errors import InvalidRequest, ServerStartFailed
from app.packages import PackageStore
from app.sandboxes.directory import Directory
from app.sandboxes.failures import raise_unless_up
from app.sandboxes.models import LiveSandbox, McpOptions, PodRecord, Sandbox, ServerStatus
from app.sandboxes.package_installs import install_packages, with_failures
from app.sandboxes.planning import Blueprint, GatewayPlan, make_gateway_config, plan_gateway
from app.sandboxes.pod_clients import GatewayClient, PodUnreachableError
from app.sandboxes.store import Store
from app.sandboxes.tool_memory import Lists, ToolMemory

_START_WAIT_S = 120.0
"""The gateway itself gives up on a server after its own start time-out, well before this."""

_log = structlog.get_logger()


class GatewaySetup:
    def __init__(
        self,
        *,
        store: Store,
        gateways: GatewayClient,
        memory: ToolMemory,
        packages: PackageStore,
        directory: Directory,
        catalog: Catalog,
        blueprint: Blueprint,
    ) -> None:
        self._store = store
        self._gateways = gateways
        self._memory = memory
        self._packages = packages
        self._directory = directory
        self._catalog = catalog
        self._blueprint = blueprint

    async def install(self, plan: GatewayPlan, options: McpOptions) -> Mapping[str, str]:
        """Make sure that the servers' packages are installed. Gives why one could not be, by server key.

        Raises: EngineError, ServerStartFailed if a failure fails the whole.
        """
        failures = await install_packages(self._packages, plan.packages)
        if failures and options.on_failure == "fail":
            raise ServerStartFailed("Failed to start MCP gateway: " + "\n".join(failures.values()))
        return failures

    async def configure(self, sandbox: Sandbox, pod: PodRecord, plan: GatewayPlan, address: str) -> list[ServerStatus]:
        """Hand the gateway its configuration, as soon as it listens; the caller bounds the wait."""
        recalled = await self._memory.recall(sandbox.team_id, plan.fingerprints.values())
        remembered = {
            server: orjson.Fragment(recalled[fingerprint].content)
            for server, fingerprint in plan.fingerprints.items()
            if fingerprint in recalled
        }
        config = make_gateway_config(
            plan, sandbox.secrets.mcp_options, pod, sandbox.secrets.mcp_tokens, remembered=remembered
        )
        return await self._gateways.configure(address, pod.secrets.gateway_token, config)

    async def settle(
        self, sandbox: Sandbox, pod: PodRecord, address: str, servers: list[ServerStatus]
    ) -> tuple[ServerStatus, ...]:
        """States of the MCP servers, once each can be listed or has failed if the caller wants to wait.

        Raises: ServerStartFailed.
        """
        options = sandbox.secrets.mcp_options
        if options.wait and any(server.state == "starting" and not server.listed for server in servers):
            servers = await self._gateways.status(
                address, pod.secrets.gateway_token, wait_s=_START_WAIT_S, until_listed=True
            )
        if options.wait and options.on_failure == "fail":
            raise_unless_up(servers)
        return tuple(servers)

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
                    content = await self._gateways.lists(address, token, server.name)
                    lists = Lists(server.digest, content)
                    await self._memory.remember(sandbox.team_id, fingerprint, server.name, lists)
        except PodUnreachableError as error:
            # It was killed or paused meanwhile. The next sandbox with these servers teaches the same.
            _log.info("lists_not_learned", sandbox_id=sandbox.id, reason=str(error))

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
        """Give a running sandbox other servers; those that are as before go on running.

        Raises: InvalidRequest, ServerStartFailed, PodUnreachableError.
        """
        old = live.sandbox.secrets
        placement = {key: value for key, value in options.placement.items() if key in mcp}
        tools = {key: value for key, value in options.tools.items() if key in mcp}
        options = replace(options, placement=placement, tools=tools)
        plan = plan_gateway(mcp, options, self._catalog, self._blueprint)
        was = plan_gateway(old.mcp, old.mcp_options, self._catalog, self._blueprint)
        if plan.image_servers != was.image_servers:
            raise InvalidRequest(
                "MCP servers that run from an image have containers of their own, which are made with the sandbox:"
                " name them when the sandbox is created."
            )
        failures = await self.install(plan, options)
        secrets = replace(old, mcp=mcp, mcp_options=options, caller_mcp_token=caller_token or old.caller_mcp_token)
        live = replace(live, sandbox=replace(live.sandbox, secrets=secrets))
        await self._store.set_secrets(live.sandbox)
        self._directory.change(live.sandbox_id, secrets=secrets)
        await self.configure(live.sandbox, live.pod, plan, address)
        servers = await self._gateways.status(
            address, live.pod.secrets.gateway_token, wait_s=wait_s if options.wait else 0, until_listed=True
        )
        if options.wait and options.on_failure == "fail":
            raise_unless_up(servers)
        return live, with_failures(servers, failures)
