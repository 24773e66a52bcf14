"""What has to hold once everything has come to rest: rows, engine and directory tell the same story."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from app.engines.in_memory_engine import InMemoryEngine
from app.sandboxes.models import PauseMode, Status
from tests.in_process import ControlPlane
from tests.pods import PodTransport

REST_WITHIN_S = 60.0


async def until_consistent(control_plane: ControlPlane, engine: InMemoryEngine, *, warm: int) -> None:
    """Wait until nothing is wrong any more; fail with what still is."""
    wrong = ["nothing was looked at"]
    try:
        async with asyncio.timeout(REST_WITHIN_S):
            while wrong := await differences(control_plane, engine, warm=warm):
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(wrong) from None


async def differences(control_plane: ControlPlane, engine: InMemoryEngine, *, warm: int) -> list[str]:
    """`warm` is how many pods wait at least, at most four times as many."""
    store = control_plane.store
    wrong = [f"{sandbox_id} is not stopped yet" for sandbox_id in await store.to_stop()]
    alive = {sandbox.id: sandbox for sandbox in await store.alive()}
    recorded = await store.pods()
    observed = await engine.observe()
    pod_of = {pod.sandbox_id: pod for pod in recorded.values() if pod.sandbox_id is not None}
    wrong += [f"pod {pod_id} has no row" for pod_id in observed.keys() - recorded.keys()]
    wrong += [f"pod {pod_id} is not on the engine" for pod_id in recorded.keys() - observed.keys()]
    wrong += [f"{sandbox_id} has a pod and does not live" for sandbox_id in pod_of.keys() - alive.keys()]
    waiting = [pod for pod in recorded.values() if pod.sandbox_id is None]
    wrong += [f"pod {pod.id} is nobody's" for pod in waiting if pod.recipe is None or pod.address is None]
    if not warm <= len(waiting) <= 4 * warm:
        wrong.append(f"{len(waiting)} pods wait")
    for sandbox in alive.values():
        pod, live = pod_of.get(sandbox.id), control_plane.directory.find(sandbox.id)
        if pod is None or live is None or pod.id not in observed:
            wrong.append(f"{sandbox.id} has no pod or is not routed to")
            continue
        if sandbox.status is not sandbox.target:
            wrong.append(f"{sandbox.id} is {sandbox.status} and should be {sandbox.target}")
        is_running = sandbox.status is Status.RUNNING
        state = "running" if is_running else "paused" if sandbox.pause_mode is PauseMode.MEMORY else "exited"
        if {container.state for container in observed[pod.id].containers} != {state}:
            wrong.append(f"{sandbox.id} is {sandbox.status}, its pod {observed[pod.id].containers}")
        if (live.address is not None, live.pod.id) != (is_running, pod.id):
            wrong.append(f"{sandbox.id} is {sandbox.status} and routed to {live.address}")
        if live.sandbox != replace(sandbox, ends_at=live.sandbox.ends_at, timeout_s=live.sandbox.timeout_s):
            wrong.append(f"{sandbox.id} is recorded as {sandbox} and known as {live.sandbox}")
        rules = engine.spec_of(pod.id).egress_rules
        is_halted = sandbox.pause_mode is PauseMode.FILESYSTEM  # such a one gets its rules when it boots
        if sandbox.has_egress and not is_halted and rules != sandbox.network.egress:
            wrong.append(f"{sandbox.id} has the rules {sandbox.network.egress}, its pod {rules}")
    known = {live.sandbox_id for live in control_plane.directory}
    wrong += [f"{sandbox_id} is routed to and does not live" for sandbox_id in known - alive.keys()]
    return wrong


def assert_no_pod_had_two_sandboxes(pods: PodTransport) -> None:
    for address, pod in pods.pods.items():
        assert len({init["sandboxId"] for init in pod.inits}) <= 1, address
