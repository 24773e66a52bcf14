"""A server whose tools are a container per call: listed from the configuration, run by the control plane."""

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson

from sandgate_gateway.callers import Caller
from sandgate_gateway.container_results import refusal, result_of_run
from sandgate_gateway.control_plane_requests import ControlPlaneRequests, RefusedError, TooManyRequestsError
from sandgate_gateway.jsonrpc import MAX_DEPTH, Result, RpcError, is_writable
from sandgate_gateway.lists import Item
from sandgate_gateway.protocol import LATEST_LEGACY_VERSION, METHOD_NOT_FOUND
from sandgate_gateway.upstreams.connection import Connection, ConnectionEndedError

MAX_ARGUMENTS = 1024 * 1024
"""Bytes as JSON: what no program takes, and what would be much for the control plane, which reads them for all."""


class ContainersConnection(Connection):
    """Nothing is connected to; it ends when it is closed."""

    def __init__(self, name: str, tools: Sequence[Item], requests: ControlPlaneRequests) -> None:
        self.protocol_version = LATEST_LEGACY_VERSION
        # It says so when they change: with another configuration.
        self.capabilities = {"tools": {"listChanged": True}}
        self._name = name
        self._tools = list(tools)
        self._requests = requests
        self._runs: set[asyncio.Task[Any]] = set()
        self._closed = asyncio.Event()

    async def open(self, *, skip_probe: bool = False) -> None:
        return

    async def request(self, method: str, params: dict[str, Any], caller: Caller) -> Result:
        match method:
            case "tools/list":
                return Result({"tools": self._tools})
            case "tools/call":
                return Result(await self._call(params))
            case _:
                raise RpcError(METHOD_NOT_FOUND, f"Method not found: {method}")

    async def _call(self, params: dict[str, Any]) -> dict[str, Any]:
        if self._closed.is_set():
            raise ConnectionEndedError("was stopped")
        tool, arguments = str(params.get("name")), params.get("arguments")
        if not is_writable(arguments):
            return refusal(f"The arguments are nested more than {MAX_DEPTH} deep.")
        if len(orjson.dumps(arguments)) > MAX_ARGUMENTS:
            return refusal(f"The arguments are longer than {MAX_ARGUMENTS} bytes.")
        work = self._requests.run(self._name, tool, {} if arguments is None else arguments)
        run = asyncio.create_task(work, name=f"run {tool} of {self._name}")
        self._runs.add(run)
        try:
            await asyncio.wait([run])
            if run.cancelled():
                raise ConnectionEndedError("was stopped")
            return result_of_run(run.result())
        except RefusedError as error:
            return refusal(str(error))
        except TooManyRequestsError:
            return refusal("Too many calls of container tools wait in this sandbox already. Try again later.")
        finally:
            run.cancel()
            self._runs.discard(run)

    async def notify(self, method: str, params: dict[str, Any], caller: Caller) -> None:
        return

    async def subscribe(self, uris: frozenset[str], timeout_s: float) -> dict[str, RpcError]:
        return {}

    async def wait_ended(self) -> str:
        await self._closed.wait()
        return "was stopped"

    async def close(self) -> None:
        self._closed.set()
        for run in self._runs:
            run.cancel()
