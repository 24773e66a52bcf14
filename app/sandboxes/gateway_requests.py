"""Answers what `mcp-gateway`, run in a workspace, asks the control plane for through the gateway's long poll."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from app.errors import SandgateError
from app.sandboxes.directory import Directory
from app.sandboxes.failures import engine_problem
from app.sandboxes.gateway_setup import GatewaySetup
from app.sandboxes.models import LiveSandbox
from app.sandboxes.pod_clients import GatewayClient, PodUnreachableError

_POLL_S = 50.0
_DEADLINE_S = 55.0
_FETCH_WAIT_S = 50.0
_RETRY_S = 5.0

_log = structlog.get_logger()


class GatewayRequests:
    def __init__(
        self,
        *,
        setup: GatewaySetup,
        gateways: GatewayClient,
        directory: Directory,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self._setup = setup
        self._gateways = gateways
        self._directory = directory
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
                    await self._setup.fetch_beforehand(request["pull"], wait_s=_FETCH_WAIT_S)
                else:
                    options = live.sandbox.secrets.mcp_options
                    await self._setup.replace_servers(
                        live, address, request["mcp"], options, caller_token=request["token"], wait_s=_DEADLINE_S
                    )
        except SandgateError as error:
            return engine_problem(error, f"The MCP servers of sandbox {live.sandbox_id} could not be set").message
        except TimeoutError:
            return f"The servers were not up within {_DEADLINE_S:g} s."
        return None
