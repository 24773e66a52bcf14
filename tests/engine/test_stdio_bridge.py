"""The stdio bridge, as built into the gateway image: docs/ARCHITECTURE.md, sections 6.2 and 6.3.

The program is taken out of the image as the control plane does it. It is static, so it runs here too.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from app.engines.images import ImageBuilder
from app.settings import ROOT, Settings
from tests.waiting import BOUND_S

pytestmark = pytest.mark.docker

STDOUT, STDERR, EXIT = 1, 2, 3


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = Settings()
    client = docker.from_env()
    try:
        tags = ImageBuilder(
            client, ROOT / "sandbox_images", base_image=settings.base_image, ca_bundle=settings.ca_bundle
        ).build(lambda progress: None)
        container = client.containers.create(tags.gateway)
        try:
            chunks, _ = container.get_archive("/opt/sandgate/stdio-bridge")
            packed = io.BytesIO(b"".join(chunks))
        finally:
            container.remove()
    finally:
        client.close()
    folder = tmp_path_factory.mktemp("bridge")
    with tarfile.open(fileobj=packed) as archive:
        archive.extract("stdio-bridge", folder, filter="data")
    return folder / "stdio-bridge"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for the address of a unix socket, which pytest's own folders need not be."""
    path = Path(tempfile.mkdtemp(prefix="bridge-"))
    yield path
    shutil.rmtree(path)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < give_up_at, f"timed out waiting until {what}"
        time.sleep(0.01)


class Peer:
    """One connection to the bridge, which is one run of its command."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(BOUND_S)
        self._socket.connect(str(path))
        self._frames = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def send_as_much_as_fits(self) -> None:
        self._socket.settimeout(0.5)
        try:
            while True:
                self._socket.send(b"x" * 65536)
        except TimeoutError:
            self._socket.settimeout(BOUND_S)

    def end(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def frame(self) -> tuple[int, bytes] | None:
        """The next frame; None at the end of the stream."""
        header = self._frames.read(5)
        if not header:
            return None
        kind, length = struct.unpack(">BI", header)
        return kind, self._frames.read(length)

    def output(self) -> tuple[bytes, bytes, dict[str, object]]:
        """Everything on stdout and stderr, and how the command ended. Fails if anything follows the exit frame."""
        collected = {STDOUT: b"", STDERR: b""}
        while (frame := self.frame()) is not None:
            kind, payload = frame
            if kind == EXIT:
                assert self.frame() is None
                return collected[STDOUT], collected[STDERR], json.loads(payload)
            collected[kind] += payload
        pytest.fail("the connection ended without an exit frame")

    def close(self) -> None:
        self._frames.close()
        self._socket.close()


class Bridge:
    def __init__(self, program: Path, path: Path, *command: str) -> None:
        self.path = path
        self.process = subprocess.Popen([program, path, "--", *command])
        self._peers: list[Peer] = []

    def listening(self) -> Bridge:
        wait_until(self.path.exists, "the bridge listens")
        return self

    def connect(self) -> Peer:
        peer = Peer(self.path)
        self._peers.append(peer)
        return peer

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def resident_kib(self) -> int:
        fields = Path(f"/proc/{self.process.pid}/status").read_text().split()
        return int(fields[fields.index("VmRSS:") + 1])

    def stop(self) -> int:
        self.process.terminate()
        for peer in self._peers:
            peer.close()
        return self.process.wait(BOUND_S)


StartBridge = Callable[..., Bridge]


@pytest.fixture
def start(bridge: Path, folder: Path) -> Iterator[StartBridge]:
    started: list[Bridge] = []

    def start(*command: str) -> Bridge:
        started.append(Bridge(bridge, folder / "stdio.sock", *command))
        return started[-1].listening()

    yield start
    for each in started:
        each.stop()


def test_bytes_go_both_ways_unchanged_and_the_exit_frame_is_last(start: StartBridge) -> None:
    peer = start("cat").connect()
    data = os.urandom(3_000_000)

    def send() -> None:
        peer.send(data)
        peer.end()

    sender = threading.Thread(target=send)
    sender.start()
    assert peer.output() == (data, b"", {"exitCode": 0})
    sender.join(BOUND_S)


def test_two_connections_are_two_runs_at_once(start: StartBridge) -> None:
    bridge = start("sh", "-c", "echo $$; cat; exit 4")
    first, second = bridge.connect(), bridge.connect()
    pids = [first.frame(), second.frame()]
    assert pids[0] != pids[1]
    second.send(b"two")
    second.end()
    assert second.output() == (b"two", b"", {"exitCode": 4})
    first.send(b"one")
    first.end()
    assert first.output() == (b"one", b"", {"exitCode": 4})


def test_stderr_has_frames_of_its_own(start: StartBridge) -> None:
    peer = start("sh", "-c", "echo out; echo err >&2; exit 7").connect()
    assert peer.output() == (b"out\n", b"err\n", {"exitCode": 7})


def test_the_end_by_a_signal_is_told_as_such(start: StartBridge) -> None:
    assert start("sh", "-c", "kill -KILL $$").connect().output() == (b"", b"", {"signal": signal.SIGKILL})


def test_a_command_that_is_not_there_is_an_error_in_valid_json(start: StartBridge) -> None:
    *_, end = start('/no/such "program"').connect().output()
    assert end == {"error": 'could not start: /no/such "program": No such file or directory'}


def test_a_command_that_outlives_its_stdin_is_ended_with_its_whole_group(start: StartBridge, folder: Path) -> None:
    peer = start("sh", "-c", f"trap '' TERM; sleep 600 & echo $! > {folder}/pid; wait; sleep 600").connect()
    pid_file = folder / "pid"
    wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), "the group runs")
    peer.end()
    assert peer.output() == (b"", b"", {"signal": signal.SIGKILL})
    wait_until(lambda: not _runs(int(pid_file.read_text())), "the group is gone")


def test_what_outlives_the_command_does_not_hold_back_the_exit_frame(start: StartBridge) -> None:
    peer = start("sh", "-c", "setsid sleep 600 & echo $!").connect()
    output, _, end = peer.output()
    os.kill(int(output), signal.SIGKILL)
    assert end == {"exitCode": 0}


def test_a_peer_that_leaves_a_command_that_reads_nothing_leaves_nothing_behind(start: StartBridge) -> None:
    bridge = start("sleep", "600")
    idle = bridge.descriptors()
    peer = bridge.connect()
    peer.send_as_much_as_fits()
    assert bridge.descriptors() > idle
    peer.close()
    wait_until(lambda: bridge.descriptors() == idle, "the run is over")


def test_connections_that_come_and_go_leave_no_descriptors_and_no_memory(start: StartBridge) -> None:
    bridge = start("cat")
    idle = bridge.descriptors()

    def round_trip() -> None:
        peers = [bridge.connect() for _ in range(20)]
        for peer in peers:
            peer.send(b"x" * 100_000)
            peer.end()
        for peer in peers:
            assert peer.output() == (b"x" * 100_000, b"", {"exitCode": 0})
            peer.close()

    round_trip()
    wait_until(lambda: bridge.descriptors() == idle, "all runs are over")
    before = bridge.resident_kib()
    for _ in range(5):
        round_trip()
    wait_until(lambda: bridge.descriptors() == idle, "all runs are over")
    assert bridge.resident_kib() <= before + 256


def test_a_slow_peer_stops_the_command_instead_of_filling_memory(start: StartBridge) -> None:
    bridge = start("sh", "-c", "head -c 8000000 /dev/zero; exit 5")
    peer = bridge.connect()
    first = peer.frame()
    assert first is not None
    assert bridge.resident_kib() < 2048
    output, _, end = peer.output()
    assert len(first[1]) + len(output) == 8_000_000
    assert end == {"exitCode": 5}


def test_term_reaches_the_command_and_the_bridge_ends_after_it(start: StartBridge) -> None:
    bridge = start("sh", "-c", "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done")
    peer = bridge.connect()
    assert peer.frame() == (STDOUT, b"ready\n")
    bridge.process.terminate()
    output, _, end = peer.output()
    assert (output, end) == (b"bye\n", {"exitCode": 3})
    assert bridge.process.wait(BOUND_S) == 0
    assert not bridge.path.exists()


def test_any_user_may_connect_and_children_keep_the_umask(start: StartBridge) -> None:
    bridge = start("sh", "-c", "umask")
    assert stat.S_IMODE(bridge.path.stat().st_mode) == 0o777
    mask = os.umask(0o022)
    os.umask(mask)
    output, *_ = bridge.connect().output()
    assert int(output, 8) == mask


def test_a_socket_left_behind_is_replaced_and_a_folder_that_comes_late_is_waited_for(
    bridge: Path, folder: Path
) -> None:
    path = folder / "late" / "stdio.sock"
    first = Bridge(bridge, path, "cat")
    path.parent.mkdir()
    first.listening()
    first.process.kill()
    first.process.wait(BOUND_S)
    assert path.exists()

    second = Bridge(bridge, path, "cat")
    try:
        wait_until(lambda: _accepts(path), "the socket is served again")
        peer = second.connect()
        peer.end()
        assert peer.output() == (b"", b"", {"exitCode": 0})
    finally:
        assert second.stop() == 0


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
