"""Does what a gateway asks the control plane for, through the gateway's long poll.

That is what `mcp-gateway`, run in a workspace, wants, one after the other, and calls of container tools, side by side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from app.catalog import CallError
from app.errors import Conflict, InvalidRequest, SandgateError
from app.sandboxes.container_calls import ContainerCalls
from app.sandboxes.directory import Directory
from app.sandboxes.failures import engine_problem
from app.sandboxes.gateway_setup import GatewaySetup
from app.sandboxes.models import LiveSandbox
from app.sandboxes.moves import Moves
from app.sandboxes.pod_clients import GatewayClient, PodUnreachableError

_POLL_S = 50.0
_DEADLINE_S = 55.0
_FETCH_WAIT_S = 50.0
_RETRY_S = 5.0
_NOTHING_NEW_S = 0.5

_log = structlog.get_logger()


class GatewayRequests:
    def __init__(
        self,
        *,
        setup: GatewaySetup,
        calls: ContainerCalls,
        gateways: GatewayClient,
        directory: Directory,
        moves: Moves,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self._setup = setup
        self._calls = calls
        self._gateways = gateways
        self._directory = directory
        self._moves = moves
        self._spawn = spawn
        self._watches: dict[str, asyncio.Task[None]] = {}
        directory.on_cut_off(self._end_watch)

    def watch(self, live: LiveSandbox) -> None:
        """Answer this sandbox's requests from now on, until it is cut off. Safe to repeat."""
        if live.sandbox.has_gateway and live.sandbox_id not in self._watches:
            self._watches[live.sandbox_id] = self._spawn(self._serve(live.sandbox_id), f"watch {live.sandbox_id}")

    def _end_watch(self, sandbox_id: str) -> None:
        self._calls.forget(sandbox_id)
        if (watch := self._watches.pop(sandbox_id, None)) is not None:
            watch.cancel()

    async def _serve(self, sandbox_id: str) -> None:
        under_way: dict[str, asyncio.Task[None]] = {}
        runs: set[str] = set()
        one_at_a_time = asyncio.Lock()

        def begin(request: Mapping[str, Any]) -> None:
            identifier = request["id"]
            work = self._settle(sandbox_id, request, one_at_a_time)
            task = under_way[identifier] = self._spawn(work, f"{identifier} of {sandbox_id}")

            def ended(_: asyncio.Task[None]) -> None:
                under_way.pop(identifier, None)
                runs.discard(identifier)

            task.add_done_callback(ended)
            if "run" in request:
                runs.add(identifier)

        try:
            while (live := self._directory.find(sandbox_id)) is not None and live.address is not None:
                token, known = live.pod.secrets.gateway_token, frozenset(under_way)
                try:
                    asked = await self._gateways.requests(live.address, token, known=known, wait_s=_POLL_S)
                except PodUnreachableError as error:
                    _log.warning("gateway_unreachable", sandbox_id=sandbox_id, reason=str(error))
                    await asyncio.sleep(_RETRY_S)
                    continue
                identifiers = {request["id"] for request in asked}
                if known and identifiers == known:
                    # A gateway that an earlier release started does not wait while there is any request.
                    await asyncio.sleep(_NOTHING_NEW_S)
                for identifier in runs - identifiers:
                    runs.discard(identifier)
                    under_way.pop(identifier).cancel()  # nobody waits for it any more
                for request in asked:
                    if request["id"] not in known:
                        begin(request)
        finally:
            for task in under_way.values():
                task.cancel()

    async def _settle(self, sandbox_id: str, request: Mapping[str, Any], one_at_a_time: asyncio.Lock) -> None:
        """Do what is asked for, and say what came of it."""
        live = self._directory.find(sandbox_id)
        if live is None or live.address is None:
            return
        failure: str | None = None
        outcome: Mapping[str, Any] | None = None
        try:
            if "run" in request:
                outcome = await self._calls.carry_out(live, request["run"])
            else:
                async with one_at_a_time:
                    failure = await self._configure(sandbox_id, request)
        except CallError as error:
            failure = str(error)
        except Exception:  # noqa: BLE001 - what is not settled is handed out again at once, over and over
            _log.exception("request_failed", sandbox_id=sandbox_id, request=request["id"])
            failure = "It was not done for an internal reason, which is in the server's log."
        token = live.pod.secrets.gateway_token
        try:
            await self._gateways.settle(live.address, token, request["id"], failure=failure, outcome=outcome)
        except PodUnreachableError as error:
            _log.warning("request_not_settled", sandbox_id=sandbox_id, request=request["id"], reason=str(error))

    async def _configure(self, sandbox_id: str, request: Mapping[str, Any]) -> str | None:
        """What went wrong, or None."""
        deadline = asyncio.get_running_loop().time() + _DEADLINE_S

        async def replace_servers() -> None:
            live = self._directory.find(sandbox_id)
            if live is None or live.address is None:
                raise Conflict(f"Sandbox {sandbox_id} does not run any more.")
            async with asyncio.timeout_at(deadline):
                options = live.sandbox.secrets.mcp_options
                await self._setup.replace_servers(
                    live, live.address, request["mcp"], options, caller_token=request["token"], wait_s=_DEADLINE_S
                )

        try:
            _check(request)
            async with asyncio.timeout_at(deadline):
                if "pull" in request:
                    await self._setup.fetch_beforehand(request["pull"], wait_s=_FETCH_WAIT_S)
                else:
                    await self._moves.run(sandbox_id, replace_servers, name="set servers of")
        except SandgateError as error:
            return engine_problem(error, f"The MCP servers of sandbox {sandbox_id} could not be set").message
        except TimeoutError:
            return f"The servers were not up within {_DEADLINE_S:g} s."
        return None


def _check(request: Mapping[str, Any]) -> None:
    """The workspace wrote it, and the gateway looked at its beginnings only. Raises: InvalidRequest."""
    keys, servers, token = request.get("pull", []), request.get("mcp", {}), request.get("token")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise InvalidRequest("pull: a list of server keys is expected.")
    if not isinstance(servers, dict) or not all(isinstance(given, dict) for given in servers.values()):
        raise InvalidRequest("mcp: a map of server keys to their options is expected.")
    if "mcp" in request and not isinstance(token, str):
        raise InvalidRequest("token: a string is expected with mcp.")
