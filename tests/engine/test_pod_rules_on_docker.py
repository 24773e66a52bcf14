"""Network rules of single pods, tried from inside as root: what they let through, and that nothing there lifts them."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Network

import pytest

from app.engines.docker_engine import DockerEngine
from app.engines.docker_pods import PodFrame, container_labels, container_name
from app.engines.interface import ALL_TRAFFIC, EgressRules, Pod
from app.errors import EngineNotPrepared, PodGone
from tests import registry
from tests.engine.conftest import INSTALLATION, Listener
from tests.engine.egress_state import addresses_in_force, flush_rules
from tests.engine.internet import FIRST, SECOND, STREAM
from tests.engine.probing import assert_blocked, probe
from tests.engine.subjects import DockerSubject, container, pod, until
from tests.waiting import BOUND_S

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="session"), pytest.mark.usefixtures("internet")]

_OPEN = EgressRules()
_CLOSED = EgressRules(denied=(ALL_TRAFFIC,))
_TO_FIRST = ("tcp", FIRST, STREAM)
_TO_SECOND = ("tcp", SECOND, STREAM)


def rules(
    *, allowed: tuple[str, ...] = (), hosts: tuple[str, ...] = (), denied: tuple[str, ...] = ("0.0.0.0/0",)
) -> EgressRules:
    return EgressRules(
        allowed=tuple(map(IPv4Network, allowed)), allowed_hosts=hosts, denied=tuple(map(IPv4Network, denied))
    )


async def started(subject: DockerSubject, pod_id: str, egress_rules: EgressRules = _OPEN) -> Pod:
    return await subject.engine.start(pod(pod_id, container(subject.image), egress_rules=egress_rules))


async def test_an_address_can_be_denied(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "denied", rules(denied=(FIRST,)))
    outcomes = await probe(docker_subject, "denied", _TO_FIRST, _TO_SECOND)
    assert outcomes == {_TO_FIRST: "EHOSTUNREACH", _TO_SECOND: "open"}


async def test_what_is_allowed_wins_over_what_is_denied(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "allowed", rules(allowed=(FIRST,)))
    outcomes = await probe(docker_subject, "allowed", _TO_FIRST, _TO_SECOND, ("udp", SECOND, STREAM))
    assert outcomes == {_TO_FIRST: "open", _TO_SECOND: "EHOSTUNREACH", ("udp", SECOND, STREAM): "EHOSTUNREACH"}


async def test_rules_hold_from_a_pods_first_packet(docker_subject: DockerSubject) -> None:
    eager = (
        "import socket, sys, time\n"
        "until, reached = time.monotonic() + float(sys.argv[1]), False\n"
        "while time.monotonic() < until and not reached:\n"
        f"    try: socket.create_connection(({FIRST!r}, {STREAM}), timeout=1).close(); reached = True\n"
        "    except OSError: pass\n"
        "print('reached' if reached else 'never', flush=True)\n"
        "time.sleep(600)\n"
    )
    # The open one ends as soon as it gets through.
    for pod_id, given, tries_s in (("eager-closed", _CLOSED, "3"), ("eager-open", _OPEN, "30")):
        program = container(docker_subject.image, command=("python3", "-c", eager, tries_s))
        await docker_subject.engine.start(pod(pod_id, program, egress_rules=given))

    async def says(pod_id: str, word: str) -> bool:
        return (await docker_subject.engine.logs(pod_id, "only", tail=1)).strip() == word

    await until(lambda: says("eager-open", "reached"))
    await until(lambda: says("eager-closed", "never"))


async def test_rules_are_replaced_while_a_pod_runs(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "hot")
    seen = []
    for given in (rules(denied=(FIRST,)), rules(denied=(SECOND,)), _CLOSED, _OPEN):
        await docker_subject.engine.set_network("hot", given)
        seen.append(list((await probe(docker_subject, "hot", _TO_FIRST, _TO_SECOND)).values()))
    assert seen == [["EHOSTUNREACH", "open"], ["open", "EHOSTUNREACH"], ["EHOSTUNREACH"] * 2, ["open", "open"]]


_HOLD = """
import socket, sys, time
tcp = socket.create_connection((sys.argv[1], 9000), timeout=30)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect((sys.argv[1], 9000))
udp.send(b"hello")
udp.settimeout(30)
udp.recv(16)
tcp.recv(16)
tcp.settimeout(None)
print("flowing", flush=True)
try:
    while tcp.recv(65536):
        tcp.send(b"x")
    print("tcp ended", flush=True)
except OSError as error:
    print("tcp", error.__class__.__name__, flush=True)
udp.settimeout(1)
try:
    for _ in range(1000):
        udp.recv(16)
    print("udp goes on", flush=True)
except OSError as error:
    print("udp", error.__class__.__name__, flush=True)
time.sleep(600)
"""


async def test_a_change_ends_connections_that_are_open(docker_subject: DockerSubject) -> None:
    held = container(docker_subject.image, command=("python3", "-c", _HOLD, FIRST))
    await docker_subject.engine.start(pod("held", held))
    await docker_subject.engine.start(pod("bystander", held))

    async def lines(pod_id: str) -> list[str]:
        return (await docker_subject.engine.logs(pod_id, "only", tail=9)).splitlines()

    async def said(pod_id: str, count: int) -> bool:
        return len(await lines(pod_id)) == count

    await until(lambda: said("held", 1))
    await until(lambda: said("bystander", 1))
    await docker_subject.engine.set_network("held", rules(denied=(FIRST,)))
    await until(lambda: said("held", 3))
    assert await lines("held") == ["flowing", "tcp ConnectionResetError", "udp TimeoutError"]
    assert await lines("bystander") == ["flowing"]


async def test_rules_of_one_pod_leave_others_alone(docker_subject: DockerSubject) -> None:
    given = {"one": rules(denied=(FIRST,)), "two": rules(denied=(SECOND,)), "three": _OPEN}
    async with asyncio.TaskGroup() as group:
        for pod_id, egress_rules in given.items():
            group.create_task(started(docker_subject, pod_id, egress_rules))
    await docker_subject.engine.stop("one")
    outcomes = [list((await probe(docker_subject, p, _TO_FIRST, _TO_SECOND)).values()) for p in ("two", "three")]
    assert outcomes == [["open", "EHOSTUNREACH"], ["open", "open"]]


async def test_many_changes_at_once_all_hold(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "busy")
    await started(docker_subject, "steady", rules(denied=(SECOND,)))
    async with asyncio.TaskGroup() as group:
        for number in range(20):
            given = rules(denied=(FIRST,)) if number % 2 else _OPEN
            group.create_task(docker_subject.engine.set_network("busy", given))
            group.create_task(docker_subject.engine.set_network("steady", rules(denied=(SECOND,))))
    await docker_subject.engine.set_network("busy", _CLOSED)
    outcomes = [list((await probe(docker_subject, p, _TO_FIRST, _TO_SECOND)).values()) for p in ("busy", "steady")]
    assert outcomes == [["EHOSTUNREACH"] * 2, ["open", "EHOSTUNREACH"]]


async def test_nothing_that_the_guard_forbids_can_be_allowed(
    docker_subject: DockerSubject, other_listener: Listener, host_address: str
) -> None:
    other = await started(docker_subject, "neighbour")
    assert other.address
    everything = rules(allowed=(host_address, other.address, "169.254.0.0/16", "0.0.0.0/0"), denied=("0.0.0.0/0",))
    await started(docker_subject, "hopeful", everything)
    forbidden = [
        ("tcp", host_address, other_listener.port),
        ("tcp", other.address, 22),
        ("tcp", "169.254.169.254", 80),
    ]
    assert await probe(docker_subject, "hopeful", _TO_FIRST) == {_TO_FIRST: "open"}
    await assert_blocked(docker_subject, "hopeful", *forbidden)


async def test_what_every_pod_may_reach_on_the_host_can_be_denied(
    docker_subject: DockerSubject, allowed_listener: Listener, host_address: str
) -> None:
    target = ("tcp", host_address, allowed_listener.port)
    await started(docker_subject, "strict", _CLOSED)
    assert await probe(docker_subject, "strict", target) == {target: "EHOSTUNREACH"}
    await docker_subject.engine.set_network("strict", _OPEN)
    assert await probe(docker_subject, "strict", target) == {target: "open"}


async def test_names_are_resolved_unless_everything_is_denied(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "resolving", rules(denied=("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
    await docker_subject.python("resolving", "only", registry.patiently(registry.RESOLVE))
    await docker_subject.engine.set_network("resolving", _CLOSED)
    code, output = await docker_subject.run("resolving", "only", ["python3", "-c", registry.RESOLVE])
    assert (code, "gaierror" in output) == (1, True)


async def test_rules_outlive_the_control_plane_and_are_taken_up_by_the_next(
    docker_subject: DockerSubject, base_image: str
) -> None:
    await started(docker_subject, "adopted", rules(denied=(FIRST,)))
    await started(docker_subject, "adopted-too", rules(denied=(FIRST,)))
    successor = DockerEngine(INSTALLATION, guard_image=base_image)
    try:
        # Before it prepares anything, and knowing nothing of the other pod.
        await successor.set_network("adopted", rules(denied=(SECOND,)))
        for prepared in (False, True):
            if prepared:
                await successor.prepare()
            outcomes = [
                list((await probe(docker_subject, pod_id, _TO_FIRST, _TO_SECOND)).values())
                for pod_id in ("adopted", "adopted-too")
            ]
            assert outcomes == [["open", "EHOSTUNREACH"], ["EHOSTUNREACH", "open"]]
        await successor.set_network("adopted-too", _OPEN)
        assert await probe(docker_subject, "adopted-too", _TO_FIRST) == {_TO_FIRST: "open"}
    finally:
        await successor.aclose()
        # The engine of the other tests knows nothing of what its successor did.
        await docker_subject.engine.stop("adopted")
        await docker_subject.engine.stop("adopted-too")


async def test_a_process_beside_the_one_that_starts_pods_leaves_their_rules_alone(
    docker_subject: DockerSubject, base_image: str
) -> None:
    limited = await started(docker_subject, "limited", _CLOSED)
    # As before its first container is made: its rules are in force, and nobody else can tell whose they are.
    await asyncio.to_thread(docker_subject.api.remove_container, container_name("limited", "only"), force=True)
    beside = DockerEngine(INSTALLATION, guard_image=base_image)
    try:
        await beside.prepare_networks()
        assert limited.address in await addresses_in_force(docker_subject)
        with pytest.raises(EngineNotPrepared):
            await beside.start(pod("of-the-other", container(docker_subject.image)))
    finally:
        await beside.aclose()
        await docker_subject.engine.prepare()  # what is allowed on this host, of which the other did not know


async def test_preparing_again_restores_rules_that_were_flushed(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "flushed", rules(denied=(FIRST,)))
    await flush_rules(docker_subject)
    assert await probe(docker_subject, "flushed", _TO_FIRST) == {_TO_FIRST: "open"}
    await docker_subject.engine.prepare()
    assert await probe(docker_subject, "flushed", _TO_FIRST) == {_TO_FIRST: "EHOSTUNREACH"}


async def test_the_next_change_restores_what_was_flushed_as_well(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "flushed", rules(denied=(FIRST,)))
    await flush_rules(docker_subject)
    await started(docker_subject, "later", rules(denied=(FIRST,)))
    assert await probe(docker_subject, "flushed", _TO_FIRST) == {_TO_FIRST: "EHOSTUNREACH"}


async def test_rules_go_with_their_pod(docker_subject: DockerSubject) -> None:
    address = (await started(docker_subject, "leaving", _CLOSED)).address
    assert address in await addresses_in_force(docker_subject)
    await docker_subject.engine.stop("leaving")
    assert address not in await addresses_in_force(docker_subject)
    with pytest.raises(PodGone):
        await docker_subject.engine.set_network("leaving", _CLOSED)


async def test_an_address_of_a_pod_that_is_gone_is_not_given_out_at_once(docker_subject: DockerSubject) -> None:
    first = (await started(docker_subject, "first", _CLOSED)).address
    await docker_subject.engine.stop("first")
    assert (await started(docker_subject, "second")).address != first


async def test_rules_stay_when_a_pod_is_halted_and_resumed(docker_subject: DockerSubject) -> None:
    before = await started(docker_subject, "sleeper", rules(denied=(FIRST,)))
    await docker_subject.engine.halt("sleeper")
    await docker_subject.engine.set_network("sleeper", rules(denied=(SECOND,)))
    assert (await docker_subject.engine.resume("sleeper")).address == before.address
    outcomes = await probe(docker_subject, "sleeper", _TO_FIRST, _TO_SECOND)
    assert outcomes == {_TO_FIRST: "open", _TO_SECOND: "EHOSTUNREACH"}


async def test_a_container_that_its_rules_would_not_hold_for_is_made_anew(docker_subject: DockerSubject) -> None:
    spec = pod("stray", container(docker_subject.image), egress_rules=_CLOSED)
    made = docker_subject.api.create_container(
        docker_subject.image,
        command=["sleep", "600"],
        name="sandgate-stray-only",
        labels=container_labels(PodFrame.of(INSTALLATION, spec), "only"),
    )["Id"]
    await docker_subject.engine.start(spec)
    assert (await docker_subject.inspect("stray", "only"))["Id"] != made
    assert await probe(docker_subject, "stray", _TO_FIRST) == {_TO_FIRST: "EHOSTUNREACH"}


async def test_the_hosts_own_connections_end_as_ever(docker_subject: DockerSubject) -> None:
    """Also one that its program has closed with words still on the way: it has no owner that a rule could ask for."""
    await started(docker_subject, "limited", rules(hosts=("a.example",)))
    words = b"x" * 4_000_000

    def say_and_close(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setblocking(False)
            connection.send(words)

    with socket.create_server(("127.0.0.1", 0)) as server:
        await asyncio.to_thread(say_and_close, server.getsockname()[1])
        listener, _ = server.accept()
        with listener:
            listener.settimeout(BOUND_S)
            while await asyncio.to_thread(listener.recv, 65536):
                pass
