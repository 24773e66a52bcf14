"""What root in a sandbox, a server in the gateway, another team and a stranger at the edge must not reach."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from e2b import CommandExitException, InvalidArgumentException, Sandbox

from app.accounts import Accounts
from app.database import Database
from tests.e2e.conftest import SECRET, Surroundings
from tests.e2e.installation import Installation, call, mcp_client, wait_until
from tests.ports import is_open

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

OTHER_SECRET = "aladdin-rub-0987654321"

CONNECT = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor

def is_reached(target):
    try:
        socket.create_connection(target, 5).close()
    except OSError:
        return False
    return True

targets = json.loads(sys.argv[1])
with ThreadPoolExecutor(64) as pool:
    print(json.dumps([target for target, is_one in zip(targets, pool.map(is_reached, targets)) if is_one]))
"""

GROW = """
import os, signal
count = 0
try:
    while count < 5000:
        if os.fork() == 0:
            signal.pause()
        count += 1
except OSError:
    print(count, flush=True)
signal.pause()
"""
"""Takes every process that a container may have, says how many these were, and keeps them."""

ALLOCATE = "python3 -c 'kept = [b\"x\" * (64 << 20) for _ in range(64)]'"
"""4 GiB, every page of it touched."""


@pytest.fixture(scope="module")
def sandbox(installation: Installation) -> Iterator[dict[str, Any]]:
    created = installation.create(mcp={"probe": {}, "probeWithSecret": {"probeApiKey": SECRET}, "time": {}})
    yield created
    installation.delete(created["sandboxID"])


@pytest.fixture(scope="module")
def other(installation: Installation) -> Iterator[dict[str, Any]]:
    created = installation.create(mcp={"time": {}})
    yield created
    installation.delete(created["sandboxID"])


@pytest.fixture
def workspace(installation: Installation, sandbox: dict[str, Any]) -> Sandbox:
    return installation.sdk(sandbox["sandboxID"])


@pytest.fixture
def listener() -> Iterator[int]:
    """A port that is open at every address of this host."""
    with socket.create_server(("0.0.0.0", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=5)


def reached(workspace: Sandbox, targets: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Those of the TCP ports that root in the workspace gets a connection to."""
    workspace.files.write("/tmp/connect.py", CONNECT)
    done = workspace.commands.run(f"python3 /tmp/connect.py '{json.dumps(targets)}'", user="root", timeout=120)
    return [(host, port) for host, port in json.loads(done.stdout)]


def address_of(workspace: Sandbox) -> str:
    return workspace.commands.run("hostname -I").stdout.split()[0]


def test_root_reaches_no_address_of_the_host(
    workspace: Sandbox, installation: Installation, surroundings: Surroundings, listener: int
) -> None:
    found = [a.address for all_of in psutil.net_if_addrs().values() for a in all_of if a.family == socket.AF_INET]
    # An address may be gone by now, with the network of some other sandbox.
    addresses = [address for address in found if not address.startswith("127.") and is_open(address, listener)]
    assert len(addresses) >= 3
    allowed = (surroundings.host, surroundings.web_port)
    targets = [(address, port) for address in addresses for port in (listener, installation.port)]
    assert reached(workspace, [*targets, allowed]) == [allowed]


def test_root_reaches_no_metadata_service_and_no_other_sandbox(
    workspace: Sandbox, installation: Installation, other: dict[str, Any]
) -> None:
    neighbour = address_of(installation.sdk(other["sandboxID"]))
    own = address_of(workspace)
    assert own != neighbour
    ports = (49983, 49984, 50005, 50006)
    targets = [(neighbour, port) for port in ports] + [("169.254.169.254", 80), ("169.254.170.2", 80)]
    assert reached(workspace, [*targets, (own, 50005)]) == [(own, 50005)]


def test_root_has_no_way_out_of_its_container(workspace: Sandbox) -> None:
    def output(command: str) -> str:
        return workspace.commands.run(f"{command} 2>&1 || true", user="root").stdout.strip()

    assert output("find / -xdev -name 'docker*.sock' -o -xdev -name 'containerd*.sock'") == ""
    bounding = int(output("grep CapBnd /proc/self/status").split()[1], 16)
    # capabilities(7): NET_ADMIN, NET_RAW, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, MKNOD, BPF.
    assert [number for number in (12, 13, 16, 17, 19, 21, 27, 39) if bounding >> number & 1] == []
    for kind in ("AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP", "AF_PACKET, socket.SOCK_RAW"):
        assert "PermissionError" in output(f"python3 -c 'import socket; socket.socket(socket.{kind})'")
    for command in ("unshare --net true", "unshare --user --map-root-user true", "mount -t tmpfs none /mnt"):
        assert any(word in output(command) for word in ("not permitted", "denied")), command
    assert "Read-only" in output("sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'")


def test_root_has_no_use_of_the_other_doors_of_its_pod(workspace: Sandbox) -> None:
    curl = "curl -s -o /dev/null -w '%{http_code} '"
    answers = workspace.commands.run(
        f"{curl} http://localhost:50006/status; {curl} -X PUT -d '{{}}' http://localhost:50006/config;"
        f"{curl} http://localhost:50006/requests; {curl} -X POST -d '{{}}' http://localhost:49983/init;"
        f"{curl} -X POST http://localhost:50005/mcp",
        user="root",
    )
    assert answers.stdout.split() == ["401"] * 5


def test_without_internet_access_there_is_none(installation: Installation, surroundings: Surroundings) -> None:
    download = "python3 -m pip download --no-deps --no-cache-dir --dest /tmp six"
    allowed = (surroundings.host, surroundings.web_port)
    created = {open_: installation.create(allow_internet_access=open_, mcp={"time": {}}) for open_ in (True, False)}
    workspaces = {open_: installation.sdk(answer["sandboxID"]) for open_, answer in created.items()}
    assert workspaces[True].commands.run(f"{download} --retries 3 --timeout 30", timeout=240).exit_code == 0
    with pytest.raises(CommandExitException):
        workspaces[False].commands.run(f"{download} --retries 0 --timeout 10", timeout=120)
    assert reached(workspaces[True], [allowed]) == [allowed]
    assert reached(workspaces[False], [allowed]) == []
    # Sandboxes on one network must not be found from the other one either.
    addresses = {open_: address_of(workspace) for open_, workspace in workspaces.items()}
    for open_, workspace in workspaces.items():
        assert reached(workspace, [(addresses[not open_], 49983)]) == []
    with installation.http() as client:
        for answer in created.values():
            assert client.post(answer["mcp"]["url"], json={}).status_code == 401
            installation.delete(answer["sandboxID"])


async def test_a_server_sees_nothing_of_another_one(sandbox: dict[str, Any]) -> None:
    async with mcp_client(sandbox) as client:

        async def by(server: str, command: str) -> str:
            return await call(client, f"{server}_run", command=command)

        # Both see their own, so the search finds what there is to be found.
        pattern = f"{SECRET[:-1]}[{SECRET[-1]}]"
        search = f"cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c '{pattern}' || true"
        assert (await by("probeWithSecret", search)).strip() != "0"
        assert (await by("probe", search)).strip() == "0"

        users = [(await by(server, "id -u")).strip() for server in ("probe", "probeWithSecret")]
        assert len(set(users)) == 2
        assert "0" not in users
        pids = (await by("probe", f"pgrep -u {users[1]}; pgrep -u 0")).split()
        assert len(pids) >= 2
        for pid in pids:
            for command in (f"kill -TERM {pid}", f"ls /proc/{pid}/fd", f"cat /proc/{pid}/mem | head -c 1"):
                told = await by("probe", command)
                assert "ermitted" in told or "denied" in told, (command, told)
        home = (await by("probeWithSecret", "echo $HOME; touch $HOME/private")).split()[0]
        in_the_way = "mkdir /run/servers/gateway.sock"  # where image servers that come later call
        for command in (f"ls {home}", f"touch {home}/mine", "cat /proc/1/environ", "sudo -n id", in_the_way):
            told = await by("probe", command)
            assert any(word in told for word in ("denied", "not found", "no new privileges")), (command, told)
        # No file that all can write to lets one server leave something for another to run; uv's locks are never read.
        writable = "find / -xdev -type f -perm -o+w 2>/dev/null"
        assert (await by("probe", writable)).strip() == ""
        bounding = (await by("probe", "grep -E 'CapEff|CapPrm|NoNewPrivs' /proc/self/status")).split()
        assert bounding == ["CapPrm:", "0" * 16, "CapEff:", "0" * 16, "NoNewPrivs:", "1"]


async def test_a_server_reaches_no_address_of_the_host(
    sandbox: dict[str, Any], surroundings: Surroundings, listener: int
) -> None:
    async with mcp_client(sandbox) as client:
        for host in (surroundings.host, "169.254.169.254"):
            connect = f"import socket; socket.create_connection(('{host}', {listener}), 2); print('con' 'nected')"
            assert "connected" not in await call(client, "probe_run", command=f'python3 -c "{connect}"')


async def test_a_server_that_eats_memory_ends_alone(sandbox: dict[str, Any]) -> None:
    async with mcp_client(sandbox) as client:
        await call(client, "probe_run", command=ALLOCATE)
        assert "UTC" in await call(client, "get_current_time", timezone="UTC")
        assert await call(client, "probeWithSecret_run", command="echo alive") == "alive\n"


def test_a_command_that_eats_memory_ends_alone(workspace: Sandbox) -> None:
    with pytest.raises(CommandExitException) as ended:
        workspace.commands.run(ALLOCATE, timeout=120)
    assert ended.value.exit_code != 0
    assert workspace.commands.run("echo alive").stdout == "alive\n"


def test_a_sandbox_full_of_processes_harms_no_other(installation: Installation, other: dict[str, Any]) -> None:
    created = installation.create(mcp={"time": {}})
    # Its start is not what is tried here, and a thousand forks take the time that it has.
    assert installation.states(created["sandboxID"]) == {"time": "ready"}
    full = installation.sdk(created["sandboxID"])
    full.files.write("/tmp/grow.py", GROW)
    growing = full.commands.run("python3 /tmp/grow.py", background=True)
    told = next(stdout for stdout, _, _ in growing if stdout)
    assert 900 < int(told) < 1024
    assert installation.sdk(other["sandboxID"]).commands.run("echo alive").stdout == "alive\n"
    with installation.http() as client:
        # The gateway is another container, with processes of its own.
        assert installation.states(created["sandboxID"]) == {"time": "ready"}
        assert growing.kill()
        # The place of the one that was killed is free once it has been reaped.
        wait_until(lambda: _cleared(full), lambda: "no command can be run in it any more")
        assert client.delete(f"/sandboxes/{created['sandboxID']}").status_code == 204


def _cleared(full: Sandbox) -> bool:
    try:
        return full.commands.run("pkill -f [g]row.py; echo alive", user="root").stdout == "alive\n"
    except InvalidArgumentException as error:
        if "Resource temporarily unavailable" in str(error):
            return False
        raise


def test_the_edge_leads_to_no_control_door(installation: Installation, sandbox: dict[str, Any]) -> None:
    sandbox_id = sandbox["sandboxID"]
    token = installation.control_token(sandbox_id, "agent")
    gateway_token = installation.control_token(sandbox_id, "gateway")
    body = json.dumps({"sandboxId": sandbox_id, "accessToken": "taken-over"})

    def ask(method: str, path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", installation.port, timeout=30)
        # Not through `request`, which minds what a path may hold.
        connection.putrequest(method, path, skip_host="Host" in headers)
        sent = {"X-Control-Token": token, "Authorization": f"Bearer {gateway_token}", **headers}
        for name, value in {**sent, "Content-Length": str(len(body))}.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body.encode())
        status = connection.getresponse().status
        connection.close()
        return status

    to_agent = {"E2b_Sandbox_Id": sandbox_id, "E2b_Sandbox_Port": "49983"}
    spellings = [
        "/init",
        "//init",
        "/./init",
        "/x/../init",
        "/init/",
        "/INIT",
        "/%69nit",
        "/init?x=1",
        "/init#x",
        "/init;x",
    ]
    spellings += ["/%2finit", "/..%2finit", "/init%00", "/init%20", "http://127.0.0.1:49983/init", "\\init", "init"]
    answers = {path: ask("POST", path, **to_agent) for path in spellings}
    assert {path: status for path, status in answers.items() if status not in (400, 404)} == {}
    ports = ["49984", "50006", "050006", "0050006", "+50006", "50006,50005", "0xC356", "\u0665\u0660\u0660\u0660\u0666"]
    for port in ports:
        routed = {"E2b_Sandbox_Id": sandbox_id, "E2b_Sandbox_Port": port.encode().decode("latin-1")}
        assert ask("GET", "/status", **routed) in (400, 404), port
    for path in (
        "/mcp/../status",
        "/mcp/%2e%2e/status",
        "/mcp/..%2fstatus",
        "/mcp/../../init",
        "/status",
        "/../status",
    ):
        assert ask("GET", f"/sandboxes/{sandbox_id}{path}") in (400, 401, 404, 405), path
    smuggled = f"/sandboxes/{sandbox_id}/mcp HTTP/1.1\r\nHost: x\r\n\r\nPUT /config"
    with socket.create_connection(("127.0.0.1", installation.port), 5) as raw:
        raw.sendall(f"GET {smuggled} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert b" 200 " not in raw.recv(65536).split(b"\r\n")[0]
    # Nothing was taken over.
    assert installation.sdk(sandbox_id).commands.run("echo mine").stdout == "mine\n"
    assert set(installation.states(sandbox_id).values()) == {"ready"}


def test_tokens_of_one_sandbox_open_no_other(
    installation: Installation, sandbox: dict[str, Any], other: dict[str, Any]
) -> None:
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    bearer = {"Authorization": f"Bearer {sandbox['mcp']['token']}"}
    with installation.http() as client:
        assert client.post(other["mcp"]["url"], json=ping, headers=bearer).status_code == 401
        routed = {"E2b-Sandbox-Id": other["sandboxID"], "E2b-Sandbox-Port": "50005"}
        assert client.post("/mcp", json=ping, headers={**bearer, **routed}).status_code == 401
        routed["E2b-Sandbox-Port"] = "49983"
        for token, status in ((sandbox["envdAccessToken"], 401), (other["envdAccessToken"], 200)):
            headers = {**routed, "X-Access-Token": token}
            found = client.get("/files", params={"path": "/etc/hostname", "username": "root"}, headers=headers)
            assert found.status_code == status


async def test_another_team_finds_nothing(installation: Installation, sandbox: dict[str, Any]) -> None:
    database = Database(f"sqlite+aiosqlite:///{installation.home / 'sandgate.db'}")
    accounts = Accounts(database)
    key = await accounts.create_key(await accounts.create_team("another"), "test")
    await database.aclose()
    sandbox_id = sandbox["sandboxID"]
    with installation.http() as client:
        client.headers["X-API-KEY"] = key
        answers = [
            client.get(f"/sandboxes/{sandbox_id}"),
            client.post(f"/sandboxes/{sandbox_id}/connect", json={}),
            client.post(f"/v2/sandboxes/{sandbox_id}/connect", json={}),
            client.post(f"/sandboxes/{sandbox_id}/timeout", json={"timeout": 0}),
            client.delete(f"/sandboxes/{sandbox_id}"),
        ]
        unknown = client.get("/sandboxes/iunknown")
        assert [answer.status_code for answer in answers] == [404] * 5
        assert answers[0].json()["message"] == unknown.json()["message"].replace("iunknown", sandbox_id)
        assert client.get("/v2/sandboxes").json() == []
    assert sandbox_id in installation.sandboxes()
