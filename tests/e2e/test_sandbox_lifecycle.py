"""What a script for E2B does with the life of a sandbox, with the official Python SDK and nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from e2b import Sandbox, SandboxNotFoundException, SandboxQuery, SandboxState

from tests.e2e.installation import Installation, call, mcp_client, wait_until

pytestmark = pytest.mark.e2e

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"

Create = Callable[..., Sandbox]


@pytest.fixture
def create(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Create]:
    """`Sandbox.create` with nothing but the environment set."""
    for name, value in installation.sdk_environment.items():
        monkeypatch.setenv(name, value)
    made: list[str] = []

    def make(template: str = "base", **options: Any) -> Sandbox:
        sandbox = Sandbox.create(template, **options)
        made.append(sandbox.sandbox_id)
        return sandbox

    yield make
    for sandbox_id in made:
        Sandbox.kill(sandbox_id)


def test_a_pause_keeps_memory_and_processes(create: Create) -> None:
    sandbox = create(envs={"A": "b"})
    process = sandbox.commands.run("sleep 1000", background=True)
    boot_id = sandbox.commands.run(BOOT_ID).stdout
    assert sandbox.pause()
    assert not sandbox.pause()
    assert sandbox.get_info().state is SandboxState.PAUSED
    assert not sandbox.is_running()
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.get_info().state is SandboxState.RUNNING
    assert again.commands.run(f"kill -0 {process.pid} && echo $A").stdout == "b\n"
    assert again.commands.run(BOOT_ID).stdout == boot_id


def test_a_pause_of_the_files_boots_anew(create: Create) -> None:
    sandbox = create(envs={"A": "b"})
    sandbox.files.write("kept.txt", "kept")
    process = sandbox.commands.run("exec -a forgotten sleep 1000", background=True)
    assert process.pid
    boot_ids = [sandbox.commands.run(BOOT_ID).stdout]
    for _ in range(2):
        sandbox.pause(keep_memory=False)
        again = Sandbox.connect(sandbox.sandbox_id)
        boot_ids.append(again.files.read(BOOT_ID.removeprefix("cat ")))
    assert len(set(boot_ids)) == 3
    assert again.files.read("kept.txt") == "kept"
    assert again.commands.run("pgrep -f ^forgotten || echo $A").stdout == "b\n"


@pytest.mark.parametrize("memory", [True, False])
async def test_a_sandbox_with_servers_works_after_a_pause(installation: Installation, memory: bool) -> None:
    made = installation.create(mcp={"time": {}})
    try:
        async with mcp_client(made) as client:
            assert "UTC" in await call(client, "get_current_time", timezone="UTC")
        with installation.http() as http:
            http.post(f"/sandboxes/{made['sandboxID']}/pause", json={"memory": memory}).raise_for_status()
            resumed = http.post(f"/v2/sandboxes/{made['sandboxID']}/connect", json={})
        assert resumed.status_code == 201
        assert resumed.json()["mcp"]["token"] == made["mcp"]["token"]
        async with mcp_client(made) as client:
            assert "UTC" in await call(client, "get_current_time", timezone="UTC")
    finally:
        installation.delete(made["sandboxID"])


def test_a_sandbox_pauses_at_its_time_out_and_traffic_wakes_it(create: Create) -> None:
    sandbox = create(timeout=3, lifecycle={"on_timeout": "pause", "auto_resume": True})
    sandbox.files.write("kept.txt", "kept")
    wait_until(lambda: sandbox.get_info().state is SandboxState.PAUSED, lambda: "it was not paused")
    # Again and again: what traffic has woken pauses at its next time-out.
    wait_until(
        lambda: sandbox.files.read("kept.txt") == "kept" and sandbox.get_info().state is SandboxState.RUNNING,
        lambda: "traffic did not wake it",
    )


def test_snapshots_are_templates_until_they_are_deleted(create: Create) -> None:
    sandbox = create()
    sandbox.files.write("/home/user/kept.txt", "kept")
    snapshot = sandbox.create_snapshot()
    sandbox.files.write("/home/user/kept.txt", "changed later")
    assert snapshot.snapshot_id in [one.snapshot_id for one in Sandbox.list_snapshots(sandbox.sandbox_id).next_items()]
    copy = create(snapshot.snapshot_id)
    assert copy.files.read("/home/user/kept.txt") == "kept"
    copy.kill()
    assert Sandbox.delete_snapshot(snapshot.snapshot_id)
    assert not Sandbox.delete_snapshot(snapshot.snapshot_id)


def test_forks_go_their_own_ways(create: Create) -> None:
    sandbox = create(metadata={"kind": "fork"}, envs={"A": "b"})
    sandbox.files.write("kept.txt", "kept")
    forks = [fork for fork in sandbox.fork(count=2) if isinstance(fork, Sandbox)]
    assert len(forks) == 2
    forks[0].files.write("kept.txt", "changed")
    assert forks[1].files.read("kept.txt") == "kept"
    assert forks[1].commands.run("echo $A").stdout == "b\n"
    assert forks[1].get_info().metadata == {"kind": "fork"}
    found = Sandbox.list(query=SandboxQuery(metadata={"kind": "fork"})).next_items()
    assert len(found) == 3
    for fork in forks:
        fork.kill()


def test_a_service_on_loopback_is_reached_and_a_dead_port_is_said_to_be_closed(
    create: Create, installation: Installation
) -> None:
    sandbox = create()
    sandbox.commands.run("python3 -m http.server 8000 --bind 127.0.0.1", background=True)
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
    wait_until(
        lambda: httpx.get(installation.url, headers=headers, timeout=60).status_code == 200,
        lambda: "the service is not reached",
    )
    closed = httpx.get(installation.url, headers={**headers, "E2b-Sandbox-Port": "8001"}, timeout=60)
    assert closed.status_code == 502
    assert "port is not open" in closed.json()["message"]


def test_network_rules_hold_and_can_be_changed(create: Create) -> None:
    connect = "python3 -c 'import socket; socket.create_connection((\"192.0.2.1\", 80), 2)' 2>&1 | tail -1"
    sandbox = create(network={"deny_out": ["192.0.2.0/24"]})
    denied = sandbox.commands.run(connect).stdout
    sandbox.update_network({})
    allowed = sandbox.commands.run(connect).stdout
    assert denied != allowed


def test_everything_holds_over_a_restart_of_the_control_plane(own_installation: Installation) -> None:
    own_installation.start()
    running, paused = own_installation.create(), own_installation.create(autoResume={"enabled": True})
    with own_installation.http() as http:
        http.post(f"/sandboxes/{paused['sandboxID']}/pause").raise_for_status()
    own_installation.kill()
    own_installation.start()
    assert sorted(own_installation.sandboxes()) == sorted([running["sandboxID"], paused["sandboxID"]])
    with own_installation.http() as http:
        assert http.get(f"/sandboxes/{paused['sandboxID']}").json()["state"] == "paused"
    assert own_installation.sdk(paused["sandboxID"]).commands.run("echo awake").stdout == "awake\n"


def test_warm_pods_are_claimed_once_and_survive_a_kill(own_installation: Installation) -> None:
    own_installation.settings = {**own_installation.settings, "SANDGATE_POOL": "base=3,mcp-gateway=0"}
    own_installation.start()
    wait_until(lambda: own_installation.log.read_text().count("pod_waits") >= 3, own_installation.log.read_text)
    waiting = set(own_installation.running_containers())
    own_installation.kill()
    own_installation.start()
    made = [own_installation.create()["sandboxID"] for _ in range(5)]
    workspaces = {own_installation.container(sandbox_id, "workspace") for sandbox_id in made}
    assert len(workspaces) == 5
    # Not all of them: a pod that is slow to answer is replaced.
    assert workspaces & waiting
    assert '"warm": true' in own_installation.log.read_text()
    for sandbox_id in made:
        own_installation.delete(sandbox_id)


def test_what_never_was_is_not_found(create: Create) -> None:
    for verb in (Sandbox.connect, Sandbox.get_info):
        with pytest.raises(SandboxNotFoundException):
            verb("inothing")
    assert not Sandbox.kill("inothing")
