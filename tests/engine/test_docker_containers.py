"""What a container on Docker gets and is denied, seen from inside it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import docker
import pytest

from app.engines.docker_engine import DockerEngine
from app.engines.docker_pods import PodFrame, container_labels
from app.engines.interface import File, Limits
from app.errors import EngineError
from tests.engine.subjects import PROGRAM, DockerSubject, container, pod, states, until
from tests.engine_door import Door

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="session")]

_DAC_OVERRIDE = 1 << 1
_SETUID = 1 << 7
"""Bits of capability sets as in linux/capability.h."""


@pytest.fixture
def image_with_entrypoint(docker_api: docker.APIClient, base_image: str) -> Iterator[str]:
    made = docker_api.create_container(base_image, command=["true"])["Id"]
    repository, tag = "sandgate-tests/entrypoint", str(os.getpid())
    config = {"Entrypoint": ["sh", "-c", "sleep infinity"], "Cmd": ["own", "arguments"], "Labels": {"of": "the image"}}
    docker_api.commit(made, repository, tag, conf=config)
    docker_api.remove_container(made)
    yield f"{repository}:{tag}"
    docker_api.remove_image(f"{repository}:{tag}", force=True)


async def test_files_are_there_before_the_program_starts_with_owner_and_mode(docker_subject: DockerSubject) -> None:
    files = (
        File(path="/run/sandgate/token", content=b"secret"),
        File(path="/etc/deep/er/app.conf", content=b"x", mode=0o640, uid=1000),
    )
    program = ("sh", "-c", "cat /run/sandgate/token; echo; sleep infinity")
    await docker_subject.engine.start(pod("files", container(docker_subject.image, files=files, command=program)))

    async def has_read_it() -> bool:
        return await docker_subject.engine.logs("files", "only", tail=1) == "secret\n"

    await until(has_read_it)
    paths = ["/run/sandgate", "/run/sandgate/token", "/etc/deep", "/etc/deep/er", "/etc/deep/er/app.conf"]
    assert await docker_subject.output_of("files", "only", "stat", "-c", "%u:%g %a %n", *paths) == (
        "0:0 755 /run/sandgate\n"
        "0:0 400 /run/sandgate/token\n"
        "0:0 755 /etc/deep\n"
        "0:0 755 /etc/deep/er\n"
        "1000:1000 640 /etc/deep/er/app.conf"
    )


async def test_files_go_into_a_container_whose_start_was_cut_before_it_came_to_them(
    docker_subject: DockerSubject,
) -> None:
    late = container(docker_subject.image, files=(File(path="/run/token", content=b"there"),))
    spec = pod("late", late, egress=False)
    # What is left of a pod stands where the pod belongs.
    address = (await docker_subject.engine.start(spec)).address
    await docker_subject.remove_container("late", "only")
    api, network = docker_subject.api, f"sandgate-{docker_subject.installation}-offline"
    made = api.create_container(
        docker_subject.image,
        command=list(PROGRAM),
        name="sandgate-late-only",
        labels=container_labels(PodFrame.of(docker_subject.installation, spec), "only"),
        host_config=api.create_host_config(network_mode=network),
        networking_config=api.create_networking_config(
            {network: api.create_endpoint_config(ipv4_address=address)}  # type: ignore[arg-type]  # the stubs are wrong
        ),
    )["Id"]
    await docker_subject.engine.start(spec)
    assert (await docker_subject.inspect("late", "only"))["Id"] == made
    assert await docker_subject.output_of("late", "only", "cat", "/run/token") == "there"


async def test_environment_user_and_host_name_are_set(docker_subject: DockerSubject) -> None:
    await docker_subject.engine.start(pod("env", container(docker_subject.image, env={"KEY": "a value"}, user="user")))
    program = "import os, pwd; print(os.environ['KEY'], pwd.getpwuid(os.getuid()).pw_name, os.uname().nodename)"
    code, output = await docker_subject.run("env", "only", ["python3", "-c", program])
    assert (code, output.strip()) == (0, "a value user sandbox")


async def test_a_prefix_stands_in_front_of_the_images_own_entrypoint_and_command(
    docker_subject: DockerSubject, image_with_entrypoint: str
) -> None:
    prefixed = container(image_with_entrypoint, entrypoint_prefix=("env", "--"), command=None)
    started = await docker_subject.engine.start(pod("prefix", prefixed))
    found = await docker_subject.inspect("prefix", "only")
    assert [found["Path"], *found["Args"]] == ["env", "--", "sh", "-c", "sleep infinity", "own", "arguments"]
    assert started.labels == {}


async def test_a_command_replaces_the_images_own_behind_a_prefix(
    docker_subject: DockerSubject, image_with_entrypoint: str
) -> None:
    prefixed = container(image_with_entrypoint, entrypoint_prefix=("env", "--"), command=("given",))
    await docker_subject.engine.start(pod("command", prefixed))
    found = await docker_subject.inspect("command", "only")
    assert [found["Path"], *found["Args"]] == ["env", "--", "sh", "-c", "sleep infinity", "given"]


async def test_only_the_named_capabilities_are_kept(docker_subject: DockerSubject) -> None:
    none = container(docker_subject.image, "none")
    some = container(docker_subject.image, "some", capabilities=("SETUID", "DAC_OVERRIDE"))
    await docker_subject.engine.start(pod("caps", none, some))
    program = "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('CapBnd')))"
    assert int(await docker_subject.python("caps", "none", program), 16) == 0
    assert int(await docker_subject.python("caps", "some", program), 16) == _SETUID | _DAC_OVERRIDE


async def test_raw_sockets_are_refused(docker_subject: DockerSubject) -> None:
    await docker_subject.engine.start(pod("raw", container(docker_subject.image)))
    program = "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)"
    code, output = await docker_subject.run("raw", "only", ["python3", "-c", program])
    assert code == 1
    assert "PermissionError" in output


async def test_a_socket_in_a_volume_that_is_read_only_can_be_connected_to_and_neither_removed_nor_replaced(
    docker_subject: DockerSubject,
) -> None:
    listen = """
import os, socket
listener = socket.socket(socket.AF_UNIX)
listener.bind('/run/servers/new')
os.chmod('/run/servers/new', 0o666)
listener.listen()
os.rename('/run/servers/new', '/run/servers/s')
while True:
    listener.accept()
"""
    command = ("python3", "-c", listen)
    owner = container(docker_subject.image, "owner", volumes={"v": "/run/servers"}, command=command)
    other = container(docker_subject.image, "other", read_only_volumes={"v": "/there"}, capabilities=("DAC_OVERRIDE",))
    await docker_subject.engine.start(pod("reads", owner, other))
    attempts = """
import os, socket, time
while not os.path.exists('/there/s'):
    time.sleep(0.01)
def tried(attempt, *arguments):
    try:
        return attempt(*arguments)
    except OSError as error:
        return error.strerror
print(tried(os.unlink, '/there/s'), tried(os.rename, '/there/s', '/there/t'), tried(os.chmod, '/there/s', 0))
print(tried(socket.socket(socket.AF_UNIX).bind, '/there/t'), tried(os.mkdir, '/there/t'))
print(tried(socket.socket(socket.AF_UNIX).connect, '/there/s'))
"""
    for user in ("root", "user"):
        code, output = await docker_subject.run("reads", "other", ["python3", "-c", attempts], user=user)
        no = "Read-only file system"
        assert (code, output.splitlines()) == (0, [f"{no} {no} {no}", f"{no} {no}", "None"])


@pytest.mark.parametrize("allowed", [False, True])
async def test_new_privileges_are_denied_unless_asked_for(docker_subject: DockerSubject, allowed: bool) -> None:
    await docker_subject.engine.start(pod("nnp", container(docker_subject.image, new_privileges=allowed)))
    status = await docker_subject.output_of("nnp", "only", "grep", "NoNewPrivs", "/proc/1/status")
    assert status.split()[1] == ("0" if allowed else "1")


async def test_the_memory_limit_holds_without_swap(docker_subject: DockerSubject) -> None:
    await docker_subject.engine.start(
        pod("memory", container(docker_subject.image, limits=Limits(memory_mib=64, cpus=1, pids=64)))
    )
    code, _ = await docker_subject.run("memory", "only", ["python3", "-c", "bytearray(b'x' * (256 << 20))"])
    assert code == 137


async def test_the_process_limit_holds(docker_subject: DockerSubject) -> None:
    await docker_subject.engine.start(
        pod("pids", container(docker_subject.image, limits=Limits(memory_mib=128, cpus=1, pids=16)))
    )
    program = "import os, signal\nfor _ in range(32):\n    if os.fork() == 0: signal.pause()"
    code, output = await docker_subject.run("pids", "only", ["python3", "-c", program])
    assert code == 1
    assert "BlockingIOError" in output


async def test_the_cpu_limit_is_a_share_of_time_even_above_the_hosts_cpus(docker_subject: DockerSubject) -> None:
    some = container(docker_subject.image, "some", limits=Limits(memory_mib=128, cpus=0.5, pids=64))
    many = container(docker_subject.image, "many", limits=Limits(memory_mib=128, cpus=512, pids=64))
    await docker_subject.engine.start(pod("cpu", some, many))
    script = "cat /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us"
    quotas = [await docker_subject.output_of("cpu", role, "sh", "-c", script) for role in ("some", "many")]
    assert [quota.split()[0] for quota in quotas] == ["50000", "51200000"]


async def test_containers_of_a_pod_share_localhost_and_nothing_else(docker_subject: DockerSubject) -> None:
    serving = ("python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", "/etc", "50005")
    gateway = container(
        docker_subject.image, "gateway", command=serving, files=(File(path="/run/gateway-only", content=b"x"),)
    )
    every = ("SYS_PTRACE", "DAC_OVERRIDE", "DAC_READ_SEARCH", "CHOWN", "SETUID", "SETGID", "KILL")
    workspace = container(docker_subject.image, "workspace", capabilities=every, new_privileges=True)
    await docker_subject.engine.start(pod("apart", gateway, workspace))

    async def answers() -> bool:
        request = ["curl", "-sf", "http://127.0.0.1:50005/debian_version"]
        return (await docker_subject.run("apart", "workspace", request))[0] == 0

    await until(answers)
    # The workspace's loop starts a process every 50 ms: one that is listed may have ended when it is read.
    listing = "cat /proc/[0-9]*/cmdline 2>/dev/null || true"
    processes = await docker_subject.output_of("apart", "workspace", "sh", "-c", listing)
    assert "while !" in processes
    assert "http.server" not in processes
    code, _ = await docker_subject.run("apart", "workspace", ["test", "-e", "/run/gateway-only"])
    assert code == 1


async def test_a_volume_is_shared_by_those_who_mount_it_and_in_memory(docker_subject: DockerSubject) -> None:
    writer = container(docker_subject.image, "writer", volumes={"shared": "/here"}, user="nobody")
    reader = container(docker_subject.image, "reader", volumes={"shared": "/there"})
    stranger = container(docker_subject.image, "stranger")
    await docker_subject.engine.start(pod("volume", writer, reader, stranger))
    await docker_subject.output_of("volume", "writer", "sh", "-c", "echo hello > /here/note")
    assert await docker_subject.output_of("volume", "reader", "cat", "/there/note") == "hello"
    facts = await docker_subject.output_of("volume", "reader", "stat", "-f", "-c", "%T", "/there")
    mode = await docker_subject.output_of("volume", "reader", "stat", "-c", "%a", "/there")
    assert (facts, mode) == ("tmpfs", "1777")
    mounts = await docker_subject.output_of("volume", "stranger", "cat", "/proc/mounts")
    assert "/here" not in mounts
    assert "/there" not in mounts


async def test_a_stop_removes_containers_and_volumes(docker_subject: DockerSubject) -> None:
    spec = pod("clean", container(docker_subject.image, "a", volumes={"v": "/v"}), container(docker_subject.image, "b"))
    await docker_subject.engine.start(spec)
    assert len(await docker_subject.leftovers("clean")) == 3
    await docker_subject.engine.stop("clean")
    assert await docker_subject.leftovers("clean") == []


async def test_preparing_removes_volumes_of_no_container_and_no_others(docker_subject: DockerSubject) -> None:
    await docker_subject.engine.start(pod("owner", container(docker_subject.image, volumes={"v": "/v"})))
    await docker_subject.engine.start(pod("cut", container(docker_subject.image, volumes={"v": "/v"})))
    await docker_subject.remove_container("cut", "only")
    assert await docker_subject.leftovers("cut") == ["sandgate-cut-v"]
    await docker_subject.engine.prepare()
    assert await docker_subject.leftovers("cut") == []
    assert await docker_subject.leftovers("owner") == ["/sandgate-owner-only", "sandgate-owner-v"]


async def test_a_stop_removes_paused_containers(docker_subject: DockerSubject) -> None:
    await docker_subject.engine.start(pod("paused", container(docker_subject.image)))
    await asyncio.to_thread(docker_subject.api.pause, "sandgate-paused-only")
    assert states((await docker_subject.engine.observe())["paused"]) == {"only": "paused"}
    await docker_subject.engine.stop("paused")
    assert await docker_subject.leftovers("paused") == []


async def test_starting_a_running_pod_keeps_its_containers_and_replaces_only_the_lost(
    docker_subject: DockerSubject,
) -> None:
    spec = pod("keep", container(docker_subject.image, "a"), container(docker_subject.image, "b"))
    await docker_subject.engine.start(spec)
    before = [(await docker_subject.inspect("keep", role))["Id"] for role in "ab"]
    await docker_subject.remove_container("keep", "b")
    await docker_subject.engine.start(spec)
    after = [(await docker_subject.inspect("keep", role))["Id"] for role in "ab"]
    assert before[0] == after[0]
    assert before[1] != after[1]


async def test_a_paused_container_goes_on(docker_subject: DockerSubject) -> None:
    spec = pod("thaw", container(docker_subject.image))
    await docker_subject.engine.start(spec)
    await asyncio.to_thread(docker_subject.api.pause, "sandgate-thaw-only")
    assert (await docker_subject.engine.start(spec)).is_running


async def test_a_program_that_cannot_run_is_seen_with_its_code_and_reason(docker_subject: DockerSubject) -> None:
    broken = container(docker_subject.image, "broken", command=("no-such-program",))
    # Whether it still runs when the start looks is up to the scheduler.
    with suppress(EngineError):
        await docker_subject.engine.start(pod("broken", container(docker_subject.image, "whole"), broken))

    async def has_exited() -> bool:
        return states((await docker_subject.engine.observe())["broken"])["broken"] == "exited"

    await until(has_exited)
    assert (await docker_subject.engine.observe())["broken"].containers[1].exit_code == 127
    assert "no-such-program" in await docker_subject.engine.logs("broken", "broken", tail=5)


async def test_another_installation_sees_and_stops_nothing_of_ours(
    docker_subject: DockerSubject, base_image: str
) -> None:
    running = await docker_subject.engine.start(pod("ours", container(docker_subject.image)))
    other = DockerEngine(f"{docker_subject.installation}-other", guard_image=base_image)
    try:
        assert await other.observe() == {}
        await other.stop("ours")
    finally:
        await other.aclose()
    assert await docker_subject.engine.observe() == {"ours": running}


async def test_a_new_engine_object_finds_what_an_earlier_one_started(
    docker_subject: DockerSubject, base_image: str
) -> None:
    running = await docker_subject.engine.start(pod("kept", container(docker_subject.image), labels={"k": "v"}))
    restarted = DockerEngine(docker_subject.installation, guard_image=base_image)
    try:
        assert await restarted.observe() == {"kept": running}
        await restarted.stop("kept")
    finally:
        await restarted.aclose()
    assert await docker_subject.leftovers("kept") == []


async def test_a_control_plane_killed_in_mid_start_leaves_what_a_stop_removes(
    docker_subject: DockerSubject, base_image: str
) -> None:
    installation = f"{docker_subject.installation}-killed"
    program = f"""
import asyncio
from app.engines.docker_engine import DockerEngine
from tests.engine.subjects import container, pod

async def start():
    engine = DockerEngine({installation!r}, guard_image={base_image!r})
    await engine.prepare()
    await engine.start(pod("killed", *(container({base_image!r}, f"c{{n}}", volumes={{"v": "/v"}}) for n in range(12))))

asyncio.run(start())
"""
    restarted = DockerEngine(installation, guard_image=base_image)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)

    async def is_begun() -> bool:
        return "killed" in await restarted.observe() or process.returncode is not None

    async def is_removed() -> bool:
        # Once more where the engine finished a create that was asked for before the kill.
        await restarted.stop("killed")
        return await docker_subject.leftovers("killed") == []

    try:
        await until(is_begun)
        process.kill()
        await process.wait()
        assert not (await restarted.observe())["killed"].is_running
        await until(is_removed)
    finally:
        await restarted.remove_installation()
        await restarted.aclose()


async def test_reading_a_file_follows_links_and_leaves_no_container(docker_subject: DockerSubject) -> None:
    assert b"Debian" in await docker_subject.engine.read_file(docker_subject.image, "/etc/os-release")
    helpers = {"label": f"sandgate.helper={docker_subject.installation}"}
    assert await asyncio.to_thread(docker_subject.api.containers, all=True, filters=helpers) == []


async def test_a_directory_is_not_read_as_a_file(docker_subject: DockerSubject) -> None:
    with pytest.raises(EngineError, match="not a regular file"):
        await docker_subject.engine.read_file(docker_subject.image, "/etc")


async def test_a_container_reads_the_boot_id_it_is_given(docker_subject: DockerSubject) -> None:
    boot_id = "9a3e1d7c-0000-4000-8000-000000000002"
    read = ("cat", "/proc/sys/kernel/random/boot_id")
    await docker_subject.engine.start(
        pod("boot", container(docker_subject.image, "a"), container(docker_subject.image, "b"))
    )
    await docker_subject.engine.set_boot_id("boot", "a", boot_id)
    assert await docker_subject.output_of("boot", "a", *read) == boot_id
    assert await docker_subject.output_of("boot", "b", *read) != boot_id
    assert await docker_subject.output_of("boot", "a", "cat", "/proc/sys/kernel/random/uuid") != boot_id
    code, _ = await docker_subject.run("boot", "a", ["umount", "/proc/sys/kernel/random/boot_id"], user="root")
    assert code != 0


_NETWORK_OF_A_CONTAINER = """
import os, socket
print(sorted(name for _, name in socket.if_nameindex()))
try:
    socket.create_connection((os.environ["ADDRESS"], 9), timeout=3)
except OSError as error:
    print(error.strerror)
"""


async def test_a_container_without_network_reaches_not_even_its_pod(docker_subject: DockerSubject) -> None:
    started = await docker_subject.engine.start(pod("mixed", container(docker_subject.image)))
    env = {"ADDRESS": started.address or ""}
    attached = [
        container(docker_subject.image, "alone", has_network=False, env=env),
        container(docker_subject.image, "together", env=env),
    ]
    assert await docker_subject.engine.attach("mixed", attached) == {}
    alone = await docker_subject.python("mixed", "alone", _NETWORK_OF_A_CONTAINER)
    together = await docker_subject.python("mixed", "together", _NETWORK_OF_A_CONTAINER)
    assert alone == "['lo']\nNetwork is unreachable"
    assert together == "['eth0', 'lo']\nConnection refused"


async def test_an_attached_container_that_fails_is_started_again(docker_subject: DockerSubject) -> None:
    await docker_subject.engine.start(pod("stubborn", container(docker_subject.image)))
    fails_once = ("sh", "-c", "test -e /tmp/before || { touch /tmp/before; exit 1; }; exec sleep 600")
    attached = container(docker_subject.image, "extra", command=fails_once)
    assert await docker_subject.engine.attach("stubborn", [attached]) == {}

    async def has_come_back() -> bool:
        found = await docker_subject.inspect("stubborn", "extra")
        return bool(found["RestartCount"] == 1 and found["State"]["Status"] == "running")

    await until(has_come_back)


async def test_detaching_removes_volumes_that_nobody_else_has(docker_subject: DockerSubject) -> None:
    await docker_subject.engine.start(pod("slots", container(docker_subject.image, volumes={"slot": "/slot"})))
    extra = container(docker_subject.image, "extra", volumes={"slot": "/slot", "extra-own": "/own"})
    await docker_subject.engine.attach("slots", [extra])
    await docker_subject.engine.detach("slots", ["extra"])
    assert sorted(await docker_subject.leftovers("slots")) == ["/sandgate-slots-only", "sandgate-slots-slot"]


class HoldsMaking(Door):
    """Lets no container be made until it may."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.making_was_asked = asyncio.Event()
        self.may_be_made = asyncio.Event()

    async def _let_through(self, sent: bytes) -> None:
        if b"/containers/create" in sent.partition(b"\r\n")[0]:
            self.making_was_asked.set()
            await self.may_be_made.wait()


async def test_detaching_removes_what_an_attach_that_was_cut_short_still_makes(
    docker_subject: DockerSubject, base_image: str, tmp_path: Path
) -> None:
    await docker_subject.engine.start(pod("hasty", container(docker_subject.image)))
    door = HoldsMaking(tmp_path / "engine.sock")
    await door.open()
    engine = DockerEngine(docker_subject.installation, guard_image=base_image, base_url=door.url)
    try:
        attaching = asyncio.create_task(engine.attach("hasty", [container(docker_subject.image, "extra")]))
        await door.making_was_asked.wait()
        attaching.cancel()
        await asyncio.wait([attaching])
        detaching = asyncio.create_task(engine.detach("hasty", ["extra"]))
        await asyncio.wait([detaching], timeout=0.5)  # too early is what it must not come
        door.may_be_made.set()
        await detaching
        await engine.attach("hasty", [])  # once the thread of the first one is through
        assert await docker_subject.leftovers("hasty") == ["/sandgate-hasty-only"]
    finally:
        await engine.aclose()
        await door.shut()
