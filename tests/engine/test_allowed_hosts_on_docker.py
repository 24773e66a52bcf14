"""Pods that may reach some hosts by name: what the egress proxy lets through, tried from inside a pod as root."""

from __future__ import annotations

import asyncio
import json
import socket
from ipaddress import IPv4Address, IPv4Network

import pytest

from app.engines.docker_engine import DockerEngine
from app.engines.interface import ALL_TRAFFIC, EgressRules, Pod
from tests import registry
from tests.engine.conftest import INSTALLATION
from tests.engine.egress_state import crash_proxy, name_addresses, proxy_container, told_to_proxy
from tests.engine.internet import FIRST, SECOND, STREAM, Request, get, plain
from tests.engine.probing import assert_blocked, probe
from tests.engine.subjects import DockerSubject, container, pod, until

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="session"), pytest.mark.usefixtures("internet")]

_ALLOWED, _OTHER = "one.example.com", "two.example.com"


def only(*hosts: str, allowed: tuple[str, ...] = (), name_servers: tuple[str, ...] | None = None) -> EgressRules:
    return EgressRules(
        allowed=tuple(map(IPv4Network, allowed)),
        allowed_hosts=hosts,
        denied=(ALL_TRAFFIC,),
        name_servers=None if name_servers is None else tuple(map(IPv4Address, name_servers)),
    )


async def started(subject: DockerSubject, pod_id: str, rules: EgressRules) -> Pod:
    """With names that lead to the test's internet, and into the host."""
    running = await subject.engine.start(pod(pod_id, container(subject.image), egress_rules=rules))
    names = {_ALLOWED: FIRST, _OTHER: SECOND, "deep.sub.example.com": SECOND, "loop.example.com": "127.0.0.1"}
    await name_addresses(subject, names)
    return running


async def test_a_host_is_reached_by_its_name_wherever_the_pod_thinks_it_is(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "named", only(_ALLOWED))
    answers = await get(docker_subject, "named", plain(_ALLOWED), Request(_ALLOWED), Request(_ALLOWED, "192.0.2.1"))
    assert answers == [{"address": FIRST, "host": _ALLOWED}] * 3


async def test_other_hosts_are_refused_in_words_a_program_understands(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "named", only(_ALLOWED))
    answers = await get(docker_subject, "named", plain(_OTHER), Request(_OTHER), Request(None))
    assert answers == ["403", "TLSV1_ALERT_ACCESS_DENIED", "TLSV1_ALERT_ACCESS_DENIED"]


async def test_a_wildcard_stands_for_every_name_below(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "wild", only("*.sub.example.com"))
    answers = await get(docker_subject, "wild", Request("deep.sub.example.com"), Request(_OTHER))
    assert answers == [{"address": SECOND, "host": "deep.sub.example.com"}, "TLSV1_ALERT_ACCESS_DENIED"]


async def test_addresses_that_are_allowed_are_reached_directly(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "mixed", only(_ALLOWED, allowed=(SECOND,)))
    answers = await get(docker_subject, "mixed", Request("any.name", SECOND), Request("any.name", FIRST))
    assert answers == [{"address": SECOND, "host": "any.name"}, "TLSV1_ALERT_ACCESS_DENIED"]


async def test_a_name_opens_nothing_but_http_and_tls(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "ports", only(_ALLOWED))
    outcomes = await probe(docker_subject, "ports", ("tcp", FIRST, STREAM), ("udp", FIRST, 443), ("udp", FIRST, STREAM))
    assert set(outcomes.values()) == {"EHOSTUNREACH"}


async def test_names_are_resolved_where_the_rules_say(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "resolving", only(_ALLOWED))
    await docker_subject.python("resolving", "only", registry.patiently(registry.RESOLVE))
    await docker_subject.engine.set_network("resolving", only(_ALLOWED, name_servers=(FIRST,)))
    code, _ = await docker_subject.run("resolving", "only", ["python3", "-c", registry.RESOLVE])
    assert code == 1
    target = ("udp", FIRST, STREAM)
    assert await probe(docker_subject, "resolving", target) == {target: "open"}


async def test_the_real_internet_is_reached_by_name(docker_subject: DockerSubject) -> None:
    await docker_subject.engine.start(pod("registry", container(docker_subject.image)))
    name = await docker_subject.python("registry", "only", registry.NAME)
    await docker_subject.engine.set_network("registry", only(name))
    await docker_subject.python("registry", "only", registry.patiently(registry.CONNECT))
    await docker_subject.engine.set_network("registry", only(_ALLOWED))
    code, output = await docker_subject.run("registry", "only", ["python3", "-c", registry.CONNECT])
    assert (code, "ACCESS_DENIED" in output) == (1, True)


async def test_no_name_leads_to_the_host_or_to_another_pod(docker_subject: DockerSubject, host_address: str) -> None:
    serve = ("python3", "-m", "http.server", "80")
    neighbour = await docker_subject.engine.start(pod("neighbour", container(docker_subject.image, command=serve)))
    assert neighbour.address
    await started(docker_subject, "curious", only("*"))
    inward = {
        "host.example.com": host_address,
        "neighbour.example.com": neighbour.address,
        "metadata.example.com": "169.254.169.254",
    }
    await name_addresses(docker_subject, inward)
    with socket.create_server((host_address, 80)):
        answers = await get(docker_subject, "curious", *map(plain, [*inward, "loop.example.com", "127.0.0.1"]))
        assert answers == ["502"] * 5
    assert await get(docker_subject, "curious", plain(_ALLOWED)) == [{"address": FIRST, "host": _ALLOWED}]


async def test_rules_of_pods_do_not_mix(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "one", only(_ALLOWED))
    await docker_subject.engine.start(pod("two", container(docker_subject.image), egress_rules=only(_OTHER)))
    answers = [await get(docker_subject, pod_id, plain(_ALLOWED), plain(_OTHER)) for pod_id in ("one", "two")]
    first, second = {"address": FIRST, "host": _ALLOWED}, {"address": SECOND, "host": _OTHER}
    assert answers == [[first, "403"], ["403", second]]


async def test_taking_a_host_back_ends_what_is_open_to_it(docker_subject: DockerSubject) -> None:
    stream = (
        "import socket, time\n"
        "connection = socket.create_connection(('198.51.100.3', 80), timeout=30)\n"
        "connection.sendall(b'GET / HTTP/1.1\\r\\nHost: one.example.com\\r\\nUpgrade: tick\\r\\n\\r\\n')\n"
        "print(connection.recv(4), flush=True)\n"
        "connection.settimeout(None)\n"
        "try:\n"
        "    while connection.recv(65536): pass\n"
        "    print('ended', flush=True)\n"
        "except OSError as error: print(error.__class__.__name__, flush=True)\n"
        "time.sleep(600)\n"
    )
    await started(docker_subject, "names", only(_ALLOWED))
    held = container(docker_subject.image, command=("python3", "-c", stream))
    await docker_subject.engine.start(pod("held", held, egress_rules=only(_ALLOWED, _OTHER)))

    async def said(count: int) -> bool:
        return len((await docker_subject.engine.logs("held", "only", tail=9)).splitlines()) == count

    await until(lambda: said(1))
    await docker_subject.engine.set_network("held", only(_ALLOWED))
    assert await said(1)
    await docker_subject.engine.set_network("held", only(_OTHER))
    await until(lambda: said(2))


async def test_without_the_proxy_nothing_gets_through_until_it_is_back(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "failing", only(_ALLOWED))
    proxy = await proxy_container(docker_subject)
    assert proxy
    await asyncio.to_thread(docker_subject.api.remove_container, proxy, force=True)
    assert await get(docker_subject, "failing", Request(_ALLOWED), plain(_ALLOWED)) == ["ECONNREFUSED"] * 2
    await started(docker_subject, "another", only(_OTHER))
    assert await get(docker_subject, "failing", Request(_ALLOWED)) == [{"address": FIRST, "host": _ALLOWED}]


async def test_a_proxy_that_crashes_comes_back_with_what_it_was_told(docker_subject: DockerSubject) -> None:
    running = await started(docker_subject, "crash", only(_ALLOWED))
    await crash_proxy(docker_subject)

    async def answers() -> bool:
        return await get(docker_subject, "crash", plain(_OTHER)) == ["403"]

    await until(answers)
    assert (await told_to_proxy(docker_subject))[str(running.address)] == [_ALLOWED]
    await docker_subject.engine.set_network("crash", only(_OTHER))
    assert (await told_to_proxy(docker_subject))[str(running.address)] == [_OTHER]


async def test_a_new_control_plane_finds_the_proxy_at_work(docker_subject: DockerSubject, base_image: str) -> None:
    await started(docker_subject, "adopted", only(_ALLOWED))
    before = await proxy_container(docker_subject)
    successor = DockerEngine(INSTALLATION, guard_image=base_image)
    try:
        await successor.prepare()
        assert await get(docker_subject, "adopted", plain(_ALLOWED)) == [{"address": FIRST, "host": _ALLOWED}]
        await successor.set_network("adopted", only(_OTHER))
        assert await get(docker_subject, "adopted", plain(_ALLOWED)) == ["403"]
        await successor.stop("adopted")
        assert await told_to_proxy(docker_subject) == {}
    finally:
        await successor.aclose()
        await docker_subject.engine.stop("adopted")
    assert await proxy_container(docker_subject) == before


async def test_no_helper_stays_when_no_pod_has_rules(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "last", only(_ALLOWED))
    await docker_subject.engine.stop("last")
    await docker_subject.engine.prepare()
    assert await proxy_container(docker_subject) is None


_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "AUDIT_WRITE",
    "SETFCAP",
)
"""The most that a container of a sandbox has."""

_BYPASS = """
import ctypes, errno, json, os, socket, struct, subprocess, fcntl

def outcome(attempt):
    try:
        return str(attempt())
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

def spoof(option):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.IPPROTO_IP, option, 1)
        s.bind(("198.18.0.77", 0))
        s.sendto(b"x", ("198.51.100.2", 9000))
    return "sent"

def raw():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)

def packet():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)

def readdress():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        address = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton("198.18.0.77"))
        fcntl.ioctl(s, 0x8916, struct.pack("16s16s8x", b"eth0", address))

def namespace():
    if ctypes.CDLL(None, use_errno=True).unshare(0x50000000):
        raise OSError(ctypes.get_errno(), "unshare")

def nft():
    return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout.strip() or "nothing"

print(json.dumps({
    "freebind": outcome(lambda: spoof(15)), "transparent": outcome(lambda: spoof(19)), "raw": outcome(raw),
    "packet": outcome(packet), "readdress": outcome(readdress), "namespace": outcome(namespace), "nft": outcome(nft),
}))
"""


async def test_root_in_a_pod_can_neither_lift_nor_evade_its_rules(docker_subject: DockerSubject) -> None:
    held = container(docker_subject.image, capabilities=_CAPABILITIES, new_privileges=True)
    await docker_subject.engine.start(pod("rebel", held, egress_rules=only(_ALLOWED)))
    await name_addresses(docker_subject, {_ALLOWED: FIRST})
    tried = json.loads(await docker_subject.output_of("rebel", "only", "python3", "-c", _BYPASS, user="0:0"))
    assert tried.pop("freebind") in (
        "EINVAL",
        "ENETUNREACH",
    )  # the kernel knows no route from an address that is not its
    assert tried == {
        "transparent": "EPERM",
        "raw": "EPERM",
        "packet": "EPERM",
        "readdress": "EPERM",
        "namespace": "EPERM",
        "nft": "nothing",
    }
    attached = (await docker_subject.inspect("rebel", "only"))["NetworkSettings"]["Networks"].values()
    direct = [("tcp", network["Gateway"], port) for network in attached for port in (15080, 15443)]
    await assert_blocked(docker_subject, "rebel", *direct, ("tcp", SECOND, STREAM), ("udp", SECOND, 443))
    smuggled = [Request(_OTHER, FIRST), plain(_OTHER, FIRST), Request("127.0.0.1"), plain("198.51.100.3")]
    assert set(await get(docker_subject, "rebel", *smuggled)) <= {"403", "400", "TLSV1_ALERT_ACCESS_DENIED"}
