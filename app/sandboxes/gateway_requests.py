"""Answers what `mcp-gateway`, run in a workspace, asks the control plane for through the gateway's long poll."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

import structlog

from app.catalog import Catalog
from app.errors import InvalidRequest, Problem
from app.sandboxes.directory import Directory
from app.sandboxes.failures import raise_unless_ready
from app.sandboxes.models import LiveSandbox
from app.sandboxes.planning import Blueprint, check_known, make_gateway_config, plan_gateway
from app.sandboxes.pod_clients import GatewayClient, PodUnreachableError
from app.sandboxes.store import Store

_POLL_S = 50.0
_DEADLINE_S = 55.0
_RETRY_S = 5.0

_log = structlog.get_logger()


class GatewayRequests:
    def __init__(
        self,
        *,
        store: Store,
        gateways: GatewayClient,
        directory: Directory,
        catalog: Catalog,
        blueprint: Blueprint,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self._store = store
        self._gateways = gateways
        self._directory = directory
        self._catalog = catalog
        self._blueprint = blueprint
        self._spawn = spawn
        self._watches: dict[str, asyncio.Task[None]] = {}
        directory.on_cut_off(self._end_watch)

    def watch(self, live: LiveSandbox) -> None:
        """Answer this sandbox's requests from now on, until it is cut off. Safe to repeat."""
        if live.sandbox.has_gateway and live.sandbox_id not in self._watches:
            self._watches[live.sandbox_id] = self._spawn(self._serve(live.sandbox_id), f"watch {live.sandbox_id}")

    def _end_watch(self, sandbox_id: str) -> None:
        if (watch := self._watches.pop(sandbox_id, None)) is not None:
            watch.cancel()

    async def _serve(self, sandbox_id: str) -> None:
        while (live := self._directory.find(sandbox_id)) is not None and live.address is not None:
            token = live.pod.secrets.gateway_token
            try:
                for request in await self._gateways.requests(live.address, token, wait_s=_POLL_S):
                    failure = await self._answer(live, live.address, request)
                    await self._gateways.settle(live.address, token, request["id"], failure=failure)
            except PodUnreachableError as error:
                _log.warning("gateway_unreachable", sandbox_id=sandbox_id, reason=str(error))
                await asyncio.sleep(_RETRY_S)

    async def _answer(self, live: LiveSandbox, address: str, request: Mapping[str, Any]) -> str | None:
        """What went wrong, or None."""
        try:
            async with asyncio.timeout(_DEADLINE_S):
                if "pull" in request:
                    check_known(request["pull"], self._catalog)
                else:
                    await self._reconfigure(live, address, request["mcp"], request["token"])
        except Problem as problem:
            return problem.message
        except TimeoutError:
            return f"The servers were not up within {_DEADLINE_S:g} s."
        return None

    async def _reconfigure(
        self, live: LiveSandbox, address: str, mcp: Mapping[str, Mapping[str, Any]], token: str
    ) -> None:
        """Replace the servers of a running sandbox. Raises: InvalidRequest, ServerStartFailed."""
        old = live.sandbox.secrets
        options = replace(old.mcp_options, placement={k: v for k, v in old.mcp_options.placement.items() if k in mcp})
        plan = plan_gateway(mcp, options, self._catalog, self._blueprint)
        was = plan_gateway(old.mcp, old.mcp_options, self._catalog, self._blueprint)
        if plan.image_servers != was.image_servers:
            raise InvalidRequest(
                "MCP servers that run from an image have containers of their own, which are made with the sandbox:"
                " name them when the sandbox is created."
            )
        secrets = replace(old, mcp=mcp, mcp_options=options, caller_mcp_token=token)
        sandbox = replace(live.sandbox, secrets=secrets)
        await self._store.set_secrets(sandbox)
        self._directory.put(replace(live, sandbox=sandbox))
        config = make_gateway_config(plan, options, live.pod, secrets.mcp_tokens)
        await self._gateways.configure(address, live.pod.secrets.gateway_token, config)
        servers = await self._gateways.status(address, live.pod.secrets.gateway_token, wait_s=_DEADLINE_S)
        if options.on_failure == "fail":
            raise_unless_ready(servers)
