"""`mcp-gateway pull`, run in a workspace: what the servers need is fetched, and the outcome told."""

from __future__ import annotations

import asyncio
from typing import Any

from app.engines.in_memory_engine import InMemoryEngine
from app.engines.jobs import JobOutcome, JobSpec, Report
from tests.in_process import ControlPlane, request
from tests.pods import PodTransport
from tests.shipped_packages import shipped_package
from tests.waiting import BOUND_S


async def asked(control_plane: ControlPlane, pods: PodTransport, *keys: str) -> dict[str, Any]:
    """What the program in the workspace is answered."""
    view = await control_plane.service.create(control_plane.team_id, request(mcp={}))
    live = control_plane.directory.find(view.sandbox.id)
    assert live is not None
    assert live.address is not None
    pod = pods.pod(live.address)
    await pod.requests.put({"id": "r1", "pull": list(keys)})
    async with asyncio.timeout(BOUND_S):
        return dict(await pod.settled.get())


async def test_a_pull_installs_the_packages_of_the_servers(
    control_plane: ControlPlane, pods: PodTransport, engine: InMemoryEngine
) -> None:
    assert await asked(control_plane, pods, "time", "git", "github/acme/tools") == {"id": "r1", "ok": True}
    assert {job.name for job in engine.jobs.started} == {
        f"install-{shipped_package(key).digest}" for key in ("time", "git")
    }


async def test_a_pull_that_fails_tells_which_server_and_the_installers_last_lines(
    control_plane: ControlPlane, pods: PodTransport, engine: InMemoryEngine
) -> None:
    async def fails(spec: JobSpec, report: Report) -> JobOutcome:
        return JobOutcome(exit_code=1, output="resolving\nsandgate: no version fits")

    engine.jobs.program = fails
    settled = await asked(control_plane, pods, "time")
    assert settled["ok"] is False
    assert settled["message"].startswith("Not everything could be fetched: MCP server 'time' needs mcp-server-time")
    assert "no version fits" in settled["message"]


async def test_a_pull_of_what_nobody_knows_fetches_nothing(
    control_plane: ControlPlane, pods: PodTransport, engine: InMemoryEngine
) -> None:
    settled = await asked(control_plane, pods, "time", "tiem")
    assert (settled["ok"], engine.jobs.started) == (False, [])
