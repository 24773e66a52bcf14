"""The whole product with edge workers: real clients, real sandboxes, and processes that are killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from e2b import Sandbox

from tests.e2e.installation import Installation, call, mcp_client, wait_until
from tests.e2e.legacy_session import LegacySession
from tests.waiting import BOUND_S

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

CONNECTIONS = 16


@pytest.fixture
def with_workers(tmp_path: Path) -> Iterator[Installation]:
    installation = Installation(tmp_path / "home", {"SANDGATE_EDGE_WORKERS": "2"})
    installation.start()
    yield installation
    installation.remove()


def listeners(installation: Installation) -> list[psutil.Process]:
    """The processes that accept connections at the installation's port."""
    return [each for each in psutil.process_iter() if _is_worker_at(installation.port, each)]


def _is_worker_at(port: int, process: psutil.Process) -> bool:
    try:
        is_worker = "app.edge.worker" in process.cmdline()
        return is_worker and any(one.laddr.port == port for one in process.net_connections("tcp"))
    except psutil.NoSuchProcess:
        return False


def statuses(installation: Installation, sandbox_id: str) -> set[int]:
    """What each worker answers for a sandbox's agent: each request has a connection of its own."""
    headers = {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": "49983"}
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=installation.url, headers=headers, timeout=60, trust_env=False, limits=limits) as http:
        return {http.get("/health").status_code for _ in range(CONNECTIONS)}


async def test_sandboxes_come_and_go_in_all_workers_at_once(with_workers: Installation) -> None:
    sandbox = with_workers.create(mcp={"time": {}}, autoPause=True)
    sandbox_id = sandbox["sandboxID"]
    assert statuses(with_workers, sandbox_id) == {204}
    for _ in range(4):
        async with mcp_client(sandbox) as client:
            assert "Europe/Oslo" in await call(client, "get_current_time", timezone="Europe/Oslo")
    sdk: Sandbox = with_workers.sdk(sandbox_id)
    assert sdk.commands.run("echo hello").stdout == "hello\n"
    sdk.files.write("/home/user/a.txt", "content")
    with with_workers.http() as http:
        assert http.get(sdk.download_url("/home/user/a.txt")).text == "content"
        assert http.post(f"/sandboxes/{sandbox_id}/pause").status_code == 204
        assert statuses(with_workers, sandbox_id) == {502}
        assert http.post(f"/sandboxes/{sandbox_id}/connect", json={"timeout": 600}).status_code == 201
        assert statuses(with_workers, sandbox_id) == {204}
        session = LegacySession(sandbox)
        headers = {**session.headers, "Accept": "text/event-stream"}
        with httpx.stream("GET", session.url, headers=headers, timeout=60, trust_env=False) as stream:
            assert stream.status_code == 200
            assert http.delete(f"/sandboxes/{sandbox_id}").status_code == 204
            assert statuses(with_workers, sandbox_id) == {502}
            with pytest.raises(httpx.RemoteProtocolError):
                stream.read()


def test_a_killed_worker_is_replaced_and_a_killed_server_leaves_none(with_workers: Installation) -> None:
    sandbox_id = with_workers.create()["sandboxID"]
    before = listeners(with_workers)
    # Worker processes, and no other, have the port; the server holds it for them.
    assert len(before) == 2
    os.kill(before[0].pid, signal.SIGKILL)
    assert statuses(with_workers, sandbox_id) == {204}
    wait_until(lambda: len(listeners(with_workers)) == 2, lambda: listeners(with_workers))
    after = listeners(with_workers)

    with_workers.kill()
    _, left = psutil.wait_procs(after, timeout=BOUND_S)
    assert not left

    with_workers.start()
    assert statuses(with_workers, sandbox_id) == {204}
    final = listeners(with_workers)
    with_workers.stop()
    assert not any(process.is_running() for process in final)


def test_two_servers_do_not_share_a_port_unknowingly(with_workers: Installation, tmp_path: Path) -> None:
    other = replace(with_workers, home=tmp_path / "other")
    refused = other.run("serve")
    assert refused.returncode == 1
    assert f"port {with_workers.port}: Address already in use" in refused.stdout + refused.stderr
