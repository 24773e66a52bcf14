"""The stdio bridge, as built into the gateway image: docs/ARCHITECTURE.md, sections 6.2 and 6.3.

The program is taken out of the image as the control plane does it. It is static, so it runs here too.
"""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import signal
import socket
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
GREETING = b"whose it is\n"
TAKE_UP = b"\x01"


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


def listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(BOUND_S)
    listener.bind(str(path))
    listener.listen()
    return listener


def offer_to(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.settimeout(BOUND_S)
    assert connection.recv(len(GREETING), socket.MSG_WAITALL) == GREETING
    return connection


class Peer:
    """One connection of the bridge's that is taken up, which is one run of its command."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
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
    """The program, and the socket that it calls at."""

    def __init__(self, program: Path, folder: Path, *command: str) -> None:
        self._listener = listen(folder / "gateway.sock")
        (folder / "greeting").write_bytes(GREETING)
        self.process = subprocess.Popen([program, folder / "gateway.sock", folder / "greeting", "--", *command])
        self._peers: list[Peer] = []

    def offer(self) -> socket.socket:
        """The next connection of the bridge, which is not taken up yet."""
        return offer_to(self._listener)

    def offers_more(self) -> bool:
        return bool(select.select([self._listener], [], [], 0)[0])

    def take(self) -> Peer:
        offer = self.offer()
        offer.sendall(TAKE_UP)
        self._peers.append(Peer(offer))
        return self._peers[-1]

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def resident_kib(self) -> int:
        fields = Path(f"/proc/{self.process.pid}/status").read_text().split()
        return int(fields[fields.index("VmRSS:") + 1])

    def stop(self) -> int:
        self.process.terminate()
        for peer in self._peers:
            peer.close()
        code = self.process.wait(BOUND_S)
        self._listener.close()
        return code


StartBridge = Callable[..., Bridge]


@pytest.fixture
def start(bridge: Path, folder: Path) -> Iterator[StartBridge]:
    started: list[Bridge] = []

    def start(*command: str) -> Bridge:
        started.append(Bridge(bridge, folder, *command))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def test_bytes_go_both_ways_unchanged_and_the_exit_frame_is_last(start: StartBridge) -> None:
    peer = start("cat").take()
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
    first, second = bridge.take(), bridge.take()
    pids = [first.frame(), second.frame()]
    assert pids[0] != pids[1]
    second.send(b"two")
    second.end()
    assert second.output() == (b"two", b"", {"exitCode": 4})
    first.send(b"one")
    first.end()
    assert first.output() == (b"one", b"", {"exitCode": 4})


def test_stderr_has_frames_of_its_own(start: StartBridge) -> None:
    peer = start("sh", "-c", "echo out; echo err >&2; exit 7").take()
    assert peer.output() == (b"out\n", b"err\n", {"exitCode": 7})


def test_the_end_by_a_signal_is_told_as_such(start: StartBridge) -> None:
    assert start("sh", "-c", "kill -KILL $$").take().output() == (b"", b"", {"signal": signal.SIGKILL})


def test_a_command_that_is_not_there_is_an_error_in_valid_json(start: StartBridge) -> None:
    *_, end = start('/no/such "program"').take().output()
    assert end == {"error": 'could not start: /no/such "program": No such file or directory'}


def test_a_command_that_outlives_its_stdin_is_ended_with_its_whole_group(start: StartBridge, folder: Path) -> None:
    peer = start("sh", "-c", f"trap '' TERM; sleep 600 & echo $! > {folder}/pid; wait; sleep 600").take()
    pid_file = folder / "pid"
    wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), "the group runs")
    peer.end()
    assert peer.output() == (b"", b"", {"signal": signal.SIGKILL})
    wait_until(lambda: not _runs(int(pid_file.read_text())), "the group is gone")


def test_what_outlives_the_command_does_not_hold_back_the_exit_frame(start: StartBridge) -> None:
    peer = start("sh", "-c", "setsid sleep 600 & echo $!").take()
    output, _, end = peer.output()
    os.kill(int(output), signal.SIGKILL)
    assert end == {"exitCode": 0}


def test_a_peer_that_leaves_a_command_that_reads_nothing_leaves_nothing_behind(start: StartBridge) -> None:
    bridge = start("sleep", "600")
    with bridge.offer() as offer:
        idle = bridge.descriptors()
        offer.sendall(TAKE_UP)
        peer = Peer(offer)
        peer.send_as_much_as_fits()
        wait_until(lambda: bridge.descriptors() > idle, "the command runs")
        peer.close()
        wait_until(lambda: bridge.descriptors() == idle, "the run is over and another is on offer")


def test_connections_that_come_and_go_leave_no_descriptors_and_no_memory(start: StartBridge) -> None:
    bridge = start("cat")
    wait_until(bridge.offers_more, "a run is on offer")
    idle = bridge.descriptors()

    def round_trip() -> None:
        peers = [bridge.take() for _ in range(20)]
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
    peer = bridge.take()
    first = peer.frame()
    assert first is not None
    assert bridge.resident_kib() < 2048
    output, _, end = peer.output()
    assert len(first[1]) + len(output) == 8_000_000
    assert end == {"exitCode": 5}


def test_term_reaches_the_command_and_the_bridge_ends_after_it(start: StartBridge) -> None:
    bridge = start("sh", "-c", "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done")
    peer = bridge.take()
    assert peer.frame() == (STDOUT, b"ready\n")
    bridge.process.terminate()
    output, _, end = peer.output()
    assert (output, end) == (b"bye\n", {"exitCode": 3})
    assert bridge.process.wait(BOUND_S) == 0


def test_the_command_keeps_the_umask(start: StartBridge) -> None:
    mask = os.umask(0o022)
    os.umask(mask)
    output, *_ = start("sh", "-c", "umask").take().output()
    assert int(output, 8) == mask


def test_an_offer_that_is_not_taken_up_starts_nothing_and_stays_alone(start: StartBridge, folder: Path) -> None:
    bridge = start("sh", "-c", f"echo >> {folder}/started; cat")
    with bridge.offer() as offer:
        assert not bridge.offers_more()
        assert not (folder / "started").exists()
        offer.sendall(TAKE_UP + b"sent along")
        peer = Peer(offer)
        assert peer.frame() == (STDOUT, b"sent along")
        with bridge.offer():
            peer.end()
            assert peer.output() == (b"", b"", {"exitCode": 0})
            peer.close()
            assert not bridge.offers_more()


@pytest.mark.parametrize("answer", [b"", b"\x02"])
def test_an_offer_that_is_refused_is_made_again(start: StartBridge, answer: bytes) -> None:
    bridge = start("cat")
    with bridge.offer() as offer:
        offer.sendall(answer)
        offer.shutdown(socket.SHUT_WR)
        assert offer.recv(1) == b""
    peer = bridge.take()
    peer.end()
    assert peer.output() == (b"", b"", {"exitCode": 0})


def test_with_as_many_runs_as_there_may_be_nothing_is_on_offer(start: StartBridge) -> None:
    bridge = start("cat")
    peers = [bridge.take() for _ in range(64)]
    for peer in peers:
        peer.send(b"x")
        assert peer.frame() == (STDOUT, b"x")
    assert not bridge.offers_more()
    peers[0].end()
    assert peers[0].output() == (b"", b"", {"exitCode": 0})
    peer = bridge.take()
    peer.send(b"y")
    assert peer.frame() == (STDOUT, b"y")


def test_a_peer_that_comes_late_or_starts_anew_is_found(bridge: Path, folder: Path) -> None:
    (folder / "greeting").write_bytes(GREETING)
    path = folder / "late" / "gateway.sock"
    process = subprocess.Popen([bridge, path, folder / "greeting", "--", "cat"])
    try:
        path.parent.mkdir()
        for _ in range(2):
            with listen(path) as listener, offer_to(listener) as offer:
                offer.sendall(TAKE_UP)
                peer = Peer(offer)
                peer.end()
                assert peer.output() == (b"", b"", {"exitCode": 0})
                peer.close()
    finally:
        process.terminate()
        assert process.wait(BOUND_S) == 0


def test_one_that_waits_to_be_taken_up_ends_at_term(start: StartBridge) -> None:
    bridge = start("cat")
    with bridge.offer() as offer:
        bridge.process.terminate()
        assert bridge.process.wait(BOUND_S) == 0
        assert offer.recv(1) == b""


def test_a_greeting_that_is_not_there_is_told(bridge: Path, folder: Path) -> None:
    command = [str(bridge), str(folder / "gateway.sock"), str(folder / "greeting"), "--", "cat"]
    done = subprocess.run(command, capture_output=True, timeout=BOUND_S, check=False)
    assert done.returncode == 1
    assert done.stderr.decode() == f"stdio-bridge: {folder}/greeting: No such file or directory\n"


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # before it was opened, or before it was read
        return False
