"""MCP servers that run from an image: pulled from a real registry, confined, added to and removed from what runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from app.engines.images import image_tags
from app.settings import ROOT, Settings
from tests.e2e.conftest import FIXTURES, Surroundings, settings_for
from tests.e2e.installation import Installation, call, mcp_client, wait_until, wait_until_open
from tests.ports import free_port
from tests.waiting import BOUND_S

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

DOCKERFILE = """
ARG FROM_IMAGE
FROM ${FROM_IMAGE}
COPY ballast /ballast
COPY probe_server.py /probe_server.py
ENTRYPOINT ["python3", "/probe_server.py"]
"""


SOCKET = "import socket, sys; s = socket.socket(socket.AF_UNIX)"
BIND = f"python3 -c \"{SOCKET}; s.bind('/run/sandgate/x')\""
KNOCK = (
    f"python3 -c \"{SOCKET}; s.connect('/run/sandgate/gateway.sock'); s.send(sys.argv[1].encode() + bytes([10]));"
    ' print(s.recv(1))"'
)
"""What the gateway says to whoever greets it so; b'' if it hangs up."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of a registry that the engine takes plain HTTP from, as it does from loopback addresses."""
    folder = tmp_path_factory.mktemp("registry")
    program = shutil.which("docker-registry") or _unpacked(folder)
    port = free_port()
    config = folder / "config.yml"
    storage = {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}}
    config.write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": f"127.0.0.1:{port}"}}))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
    try:
        wait_until_open("127.0.0.1", port)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=BOUND_S)


def _unpacked(folder: Path) -> str:
    """The program of Debian's package, which need not be installed for it."""
    folder.chmod(0o755)
    download = ["apt-get", "download", "-qq", "docker-registry"]
    if subprocess.run(download, cwd=folder, check=False).returncode != 0:
        # This host's lists of packages are missing, or name one that has been replaced.
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(download, cwd=folder, check=True)
    (package,) = folder.glob("docker-registry_*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "unpacked")], check=True)
    return str(folder / "unpacked" / "usr" / "bin" / "docker-registry")


@pytest.fixture(scope="module")
def probe_image(registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of an image that is in the registry and not on the engine."""
    settings = Settings()
    base = image_tags(ROOT / "sandbox_images", base_image=settings.base_image, ca_bundle=settings.ca_bundle).base
    context = tmp_path_factory.mktemp("probe")
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / "probe_server.py").write_bytes((FIXTURES / "probe_server.py").read_bytes())
    (context / "ballast").write_bytes(os.urandom(4 * 1024 * 1024))
    name = f"{registry}/acme/probe:1"
    client = docker.from_env()
    client.images.build(path=str(context), tag=name, buildargs={"FROM_IMAGE": base}, rm=True)
    pushed = client.api.push(name, stream=True, decode=True, auth_config={"username": "", "password": ""})
    assert not [event for event in pushed if "error" in event]
    client.images.remove(name)
    yield name
    for image in client.images.list(name=name.rpartition(":")[0]):
        client.images.remove(str(image.id), force=True)
    client.close()


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory, surroundings: Surroundings, registry: str, probe_image: str
) -> Iterator[Installation]:
    home = tmp_path_factory.mktemp("images-home")
    folder = home / "catalog" / "servers"
    folder.mkdir(parents=True)
    manifests: dict[str, dict[str, Any]] = {
        "probe": {},
        "lonely": {"disableNetwork": True, "limits": {"memoryMib": 96, "pids": 20}},
        "owner": {"capabilities": ["CHOWN"]},
        "nobody": {"image": f"{registry}/acme/absent:1"},
        "stranger": {"user": "no-such-user"},
    }
    for name, manifest in manifests.items():
        about = {"name": name, "title": name, "type": "server", "image": probe_image}
        (folder / f"{name}.yaml").write_text(json.dumps(about | manifest))
    installation = Installation(home, {**settings_for(surroundings), "SANDGATE_POOL": "base=0,mcp-gateway=1"})
    installation.start()
    yield installation
    for sandbox_id in installation.sandboxes():
        installation.delete(sandbox_id)
    installation.remove()


async def run(sandbox: dict[str, Any], server: str, command: str) -> str:
    async with mcp_client(sandbox) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        return (await call(client, f"{server}_run" if f"{server}_run" in tools else "run", command=command)).strip()


async def test_an_absent_image_is_pulled_and_its_digest_runs(own: Installation, probe_image: str) -> None:
    client = docker.APIClient()
    created = own.create(mcp={"probe": {}})
    assert own.states(created["sandboxID"]) == {"probe": "ready"}
    assert await run(created, "probe", "echo here; ls -l /ballast | cut -d' ' -f5") == "here\n4194304"
    (digest,) = client.inspect_image(probe_image)["RepoDigests"]  # type: ignore[no-untyped-call]  # stubs lack it
    container = client.inspect_container(own.container(created["sandboxID"], "server-0"))
    assert container["Config"]["Image"] == digest
    assert container["HostConfig"]["CapDrop"] == ["ALL"]
    assert not container["HostConfig"]["CapAdd"]
    assert container["HostConfig"]["SecurityOpt"] == ["no-new-privileges"]
    events = [json.loads(line) for line in own.log.read_text().splitlines() if line.startswith("{")]
    assert [event["pinned"] for event in events if event["event"] == "image_pulled"] == [digest]
    assert any("layers" in event["progress"] for event in events if event["event"] == "image_pulling")
    client.close()
    own.delete(created["sandboxID"])


def test_a_sandbox_with_an_image_server_is_made_of_a_waiting_pod(own: Installation) -> None:
    def one_waits() -> bool:
        with own.http() as http:
            (pool,) = http.get("/api/v1/pools").json()["pools"]
        return bool(pool["waiting"])

    def one_was() -> bool:
        wait_until(one_waits, lambda: own.log.read_text()[-3000:])
        own.delete(own.create(mcp={"probe": {}})["sandboxID"])
        events = [json.loads(line) for line in own.log.read_text().splitlines() if line.startswith("{")]
        return any(event["event"] == "sandbox_started" and event["warm"] for event in events)

    # A pod that is slow to answer is passed over.
    wait_until(one_was, lambda: own.log.read_text()[-3000:], within_s=120)


async def test_image_servers_are_confined_from_each_other_and_from_the_network(own: Installation) -> None:
    created = own.create(mcp={"probe": {}, "lonely": {}, "owner": {}})
    interfaces = "python3 -c 'import socket; print(sorted(name for _, name in socket.if_nameindex()))'"
    assert await run(created, "lonely", interfaces) == "['lo']"
    assert await run(created, "probe", interfaces) == "['eth0', 'lo']"
    reach = "python3 -c \"import socket; socket.create_connection(('127.0.0.1', 50005), 3)\" 2>&1 | tail -1"
    assert "refused" in await run(created, "lonely", reach)
    assert await run(created, "probe", reach) == ""
    assert await run(
        created, "lonely", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null"
    ) == str(96 << 20)
    capabilities = "grep CapEff /proc/self/status | cut -f2"
    assert int(await run(created, "probe", capabilities), 16) == 0
    assert int(await run(created, "owner", capabilities), 16) == 1
    own.delete(created["sandboxID"])


async def test_no_image_server_can_take_anothers_place(own: Installation) -> None:
    created = own.create(mcp={"probe": {}, "lonely": {}})
    for server in ("probe", "lonely"):
        assert await run(created, server, "ls /run/sandgate") == "gateway.sock"
        for attempt in ("rm /run/sandgate/gateway.sock", "mv /run/sandgate/gateway.sock /run/sandgate/x", BIND):
            assert "Read-only file system" in await run(created, server, attempt)
        assert await run(created, server, f"{KNOCK} {'0' * 64}") == "b''"
    assert await run(created, "probe", "cat /.sandgate/greeting") != await run(
        created, "lonely", "cat /.sandgate/greeting"
    )
    own.delete(created["sandboxID"])


async def test_image_servers_come_and_go_while_a_sandbox_runs(own: Installation) -> None:
    created = own.create(mcp={"probe": {}})
    sandbox_id = created["sandboxID"]
    async with mcp_client(created) as client:
        assert await call(client, "count") == "1"
    with own.http() as http:
        added = http.patch(f"/sandboxes/{sandbox_id}/mcp", json={"mcp": {"lonely": {}}})
        assert added.status_code == 200, added.text
        assert own.states(sandbox_id) == {"probe": "ready", "lonely": "ready"}
        async with mcp_client(created) as client:
            assert await call(client, "probe_count") == "2"  # it was not restarted
            assert await call(client, "lonely_count") == "1"
        removed = http.patch(f"/sandboxes/{sandbox_id}/mcp", json={"mcp": {"probe": None}})
        assert list(removed.json()["servers"]) == ["lonely"]
    async with mcp_client(created) as client:
        assert await call(client, "count") == "2"
    pod_id = own.container(sandbox_id, "workspace").split("-")[1]
    names = own.containers(**{"sandgate.pod": pod_id})
    assert {name.rpartition("-server-")[2] for name in names if "-server-" in name} == {"1"}
    own.delete(sandbox_id)
    wait_until(lambda: not [name for name in own.containers() if "-server-" in name], own.containers)


async def test_image_servers_are_there_after_a_pause_that_kept_the_files_only(own: Installation) -> None:
    created = own.create(mcp={"probe": {}, "lonely": {}})
    sandbox_id = created["sandboxID"]
    (own.home / "catalog" / "servers" / "lonely.yaml").rename(own.home / "lonely.yaml")
    own.stop()
    own.start()  # with a catalog that has no such server any more
    with own.http() as http:
        assert http.post(f"/sandboxes/{sandbox_id}/pause", json={"memory": False}).is_success
        assert http.post(f"/sandboxes/{sandbox_id}/connect", json={"timeout": 300}).is_success
    assert own.states(sandbox_id) == {"probe": "ready", "lonely": "ready"}
    assert await run(created, "lonely", "echo again") == "again"
    own.delete(sandbox_id)
    (own.home / "lonely.yaml").rename(own.home / "catalog" / "servers" / "lonely.yaml")


def test_what_cannot_be_had_is_told_with_the_engines_reason(own: Installation) -> None:
    with own.http() as http:
        absent = http.post("/v2/sandboxes", json={"mcp": {"nobody": {}}})
        stranger = http.post("/v2/sandboxes", json={"mcp": {"stranger": {}}})
    assert (absent.status_code, stranger.status_code) == (424, 424)
    assert "'nobody' needs the image" in absent.json()["message"]
    assert "not found" in absent.json()["message"] or "unknown" in absent.json()["message"]
    assert "'stranger' cannot be run in a container" in stranger.json()["message"]
    assert "no-such-user" in stranger.json()["message"]


def test_a_private_address_is_for_entries_of_the_operator_alone(own: Installation, surroundings: Surroundings) -> None:
    url = f"http://{surroundings.host}:{surroundings.echo_port}/mcp"
    with own.http() as http:
        plain = http.post("/v2/sandboxes", json={"mcp": {"inner": {"url": url}}})
        named = http.post("/v2/sandboxes", json={"mcp": {"inner": {"url": "https://localhost:8443/mcp"}}})
    assert (plain.status_code, named.status_code) == (424, 424)
    assert "'inner'" in plain.json()["message"]
    assert "https" in plain.json()["message"]
    assert "public" in named.json()["message"]
