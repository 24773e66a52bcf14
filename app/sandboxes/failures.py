"""What callers are told when a sandbox does not come up, and what is noted when one dies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.engines.interface import ContainerStatus, Pod
from app.errors import (
    EngineAway,
    EngineOutOfSpace,
    EngineUnavailable,
    ImageMissing,
    NotFound,
    OutOfSpace,
    PodGone,
    Problem,
    SandboxFailed,
    SandgateError,
    ServerStartFailed,
)
from app.sandboxes.directory import Directory
from app.sandboxes.models import LiveSandbox, ServerStatus
from app.sandboxes.planning import SandboxPlan


def sandbox_not_found(sandbox_id: str) -> NotFound:
    return NotFound(f"Sandbox {sandbox_id} was not found. It never was, was killed, or has reached its end of life.")


def find_live(sandbox_id: str, directory: Directory) -> LiveSandbox:
    """Raises: NotFound; EngineAway for one that is alive and that this process has not taken up yet."""
    live = directory.find(sandbox_id)
    if live is not None:
        return live
    if sandbox_id in directory.awaited:
        raise EngineAway(
            f"Sandbox {sandbox_id} cannot be used yet: since the server was started, its containers could not be looked"
            " up on the container engine. Try again soon; `sandgate doctor` tells more."
        )
    raise sandbox_not_found(sandbox_id)


def raise_for(failures: Mapping[str, str], what: str = "Failed to start MCP gateway") -> None:
    """`what` failed therefore. Raises: ServerStartFailed if there is one."""
    if failures:
        raise ServerStartFailed(f"{what}: " + "\n".join(failures.values()))


def raise_unless_up(servers: Sequence[ServerStatus]) -> None:
    """Raises: ServerStartFailed if one of them neither is ready nor can be listed, with the last lines of each."""
    failed = [
        server for server in servers if server.state != "ready" and (server.state == "failed" or not server.listed)
    ]
    if not failed:
        return
    told = []
    for server in failed:
        lines = "".join(f"\n  | {line}" for line in server.stderr)
        told.append(f"MCP server {server.name!r} {server.message or 'is still starting'}{lines}")
    raise ServerStartFailed("Failed to start MCP gateway: " + "\n".join(told))


def start_problem(error: Exception, sandbox_id: str, plan: SandboxPlan) -> Problem:
    """What the caller of a create is told."""
    match error:
        case TimeoutError():
            return SandboxFailed(f"Sandbox {sandbox_id} was not up within {plan.deadline_s:g} s and was removed.")
        case _:
            return engine_problem(error, f"Sandbox {sandbox_id} could not be started")


def engine_problem(error: Exception, what: str) -> Problem:
    """What the caller of any verb is told. `what` has happened, without a full stop."""
    match error:
        case Problem():
            return error
        case EngineOutOfSpace():
            return OutOfSpace(f"The container engine's disk is full: {error} Free space there and try again.")
        case EngineUnavailable():
            return EngineAway(f"The container engine does not answer: {error} `sandgate doctor` tells more.")
        case PodGone():
            return SandboxFailed(f"{what}: its containers were removed by somebody else.")
        case ImageMissing():
            return SandboxFailed(str(error))
        case SandgateError():
            return SandboxFailed(f"{what}: {error}")
        case TimeoutError():
            return SandboxFailed(f"{what} in time.")
        case _:
            return SandboxFailed(f"{what} for an internal reason, which is in the server's log.")


def death(sandbox_id: str, seen: Pod | None) -> str:
    if seen is None or not seen.containers:
        return f"The containers of sandbox {sandbox_id} are gone."
    ended = [_end_of(container) for container in seen.own if container.state != "running"]
    return f"Sandbox {sandbox_id} lost " + ", ".join(ended or ["its network address"]) + "."


def _end_of(container: ContainerStatus) -> str:
    if container.exit_code is None:
        return f"its {container.role} container ({container.state})"
    reason = ", most likely out of memory" if container.exit_code == 137 else ""
    return f"its {container.role} container (exit code {container.exit_code}{reason})"
