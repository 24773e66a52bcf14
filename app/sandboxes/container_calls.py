"""Carries out calls of tools that are a container per call.

The gateway says which tool of which server was called, and with what. Everything else is the sandbox's own plan, so no
word of the gateway decides what is run.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog

from app.catalog import CallError, CallVolume, ContainerTool, plan_call
from app.engines.interface import Engine, VolumeMount
from app.engines.runs import MIB, MOST_OUTPUT, RunOutcome, RunSpec
from app.errors import EngineError, ImageMissing
from app.sandboxes.failures import engine_problem
from app.sandboxes.gateway_plan import ContainerTools
from app.sandboxes.models import LiveSandbox, MountedVolume

_AT_ONCE = 16
_AT_ONCE_IN_ONE = 4
"""Calls of one sandbox."""
_TURN_WAIT_S = 60.0
_TIMEOUT_S = 60.0
"""Of a call whose tool says nothing else."""

_log = structlog.get_logger()


class ContainerCalls:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._places_of: dict[str, asyncio.Semaphore] = {}

    async def carry_out(self, live: LiveSandbox, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The outcome of a run that the gateway asked for (docs/ARCHITECTURE.md, 6.4). Ends it when cancelled.

        Raises: CallError with what whoever called the tool is to know.
        """
        server, tool = _find(live, asked["server"], asked["tool"])
        began = asyncio.get_running_loop().time()
        try:
            async with self._turn(live.sandbox_id):
                # In a thread, because arguments may be many and their schema slow.
                spec = await asyncio.to_thread(make_run, server, tool, asked["arguments"], live.sandbox.mounts)
                outcome = await self._engine.run(live.pod.id, spec)
        except ImageMissing as error:
            raise CallError(
                f"The image of tool {tool.name!r}, {tool.container.image}, is not on the container engine any more."
                f" Remove server {asked['server']!r} from the sandbox and add it again."
            ) from error
        except EngineError as error:
            raise CallError(engine_problem(error, f"Tool {tool.name!r} could not be run").message) from error
        _log.info(
            "container_tool_called",
            sandbox_id=live.sandbox_id,
            server=asked["server"],
            tool=tool.name,
            exit_code=outcome.exit_code,
            ended_by=outcome.ended_by,
            took_s=round(asyncio.get_running_loop().time() - began, 4),
        )
        return outcome_as_json(outcome, spec)

    def forget(self, sandbox_id: str) -> None:
        """The sandbox is gone or paused."""
        self._places_of.pop(sandbox_id, None)

    @asynccontextmanager
    async def _turn(self, sandbox_id: str) -> AsyncIterator[None]:
        taken: list[asyncio.Semaphore] = []
        try:
            try:
                async with asyncio.timeout(_TURN_WAIT_S):
                    of_sandbox = self._places_of.setdefault(sandbox_id, asyncio.Semaphore(_AT_ONCE_IN_ONE))
                    for places in (of_sandbox, self._places):
                        await places.acquire()
                        taken.append(places)
            except TimeoutError:
                raise CallError(
                    f"As many container tools run as may, {_AT_ONCE_IN_ONE} in this sandbox and {_AT_ONCE} in all, and"
                    f" none has ended within {_TURN_WAIT_S:g} s. Try again later."
                ) from None
            yield
        finally:
            for places in taken:
                places.release()


def make_run(
    server: ContainerTools, tool: ContainerTool, arguments: object, mounts: Sequence[MountedVolume]
) -> RunSpec:
    """What a call with these arguments runs in a sandbox with these volumes. Raises: CallError."""
    call = plan_call(tool, arguments)
    return RunSpec(
        image=tool.container.image,
        command=call.command,
        limits=server.limits,
        timeout_s=tool.timeout_s or _TIMEOUT_S,
        env=server.env,
        user=call.user,
        mounts=tuple(dict.fromkeys(_mount(volume, mounts) for volume in call.volumes)),
        has_network=server.has_network,
    )


def outcome_as_json(outcome: RunOutcome, spec: RunSpec) -> dict[str, Any]:
    notes = {
        "itself": None,
        "time-out": f"it was ended after {spec.timeout_s:g} s",
        "memory": f"it needed more than its {spec.limits.memory_mib} MiB of memory",
        "output": f"it was ended because it wrote more than {MOST_OUTPUT // MIB} MiB",
    }
    streams = {"stdout": outcome.stdout, "stderr": outcome.stderr}
    return {
        "exitCode": outcome.exit_code,
        "note": notes[outcome.ended_by],
        "cut": [name for name, output in streams.items() if output.is_cut],
        **{name: base64.b64encode(output.content).decode() for name, output in streams.items()},
    }


def _find(live: LiveSandbox, key: str, name: str) -> tuple[ContainerTools, ContainerTool]:
    plan = live.sandbox.secrets.gateway
    server = plan.container_tools.get(key) if plan is not None else None
    tool = server.find(name) if server is not None else None
    if server is None or tool is None:
        raise CallError(f"Server {key!r} of this sandbox has no tool {name!r} any more.")
    return server, tool


def _mount(wanted: CallVolume, mounts: Sequence[MountedVolume]) -> VolumeMount:
    """The volume of the sandbox that has the path, where the workspace has it: the engine mounts whole volumes only.

    Raises: CallError.
    """
    holding = [mount for mount in mounts if f"{wanted.source}/".startswith(f"{mount.path.rstrip('/')}/")]
    if not holding:
        where = " or ".join(mount.path for mount in mounts)
        remedy = (
            f"Put the files below {where}." if where else "Create the sandbox with volumeMounts, and put them there."
        )
        raise CallError(
            f"The container of this tool sees files in the sandbox's volumes only, not {wanted.source}. {remedy}"
        )
    mount = max(holding, key=lambda one: len(one.path))
    if wanted.target == wanted.source:
        target = mount.path
    elif wanted.source == mount.path.rstrip("/"):
        target = wanted.target
    else:
        raise CallError(f"{wanted.source} is a part of a volume, and only the whole of it can be at {wanted.target}.")
    return VolumeMount(volume=mount.volume_id, path=target, read_only=wanted.is_read_only)
