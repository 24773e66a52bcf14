"""What a pod on Docker can reach and who can reach it, tried from inside a pod and from this host."""

from __future__ import annotations

import asyncio
import os
import socket

import docker
import pytest

from app.engines.docker_engine import DockerEngine
from app.engines.interface import PodSpec
from app.errors import EngineError, ImageMissing
from tests import registry
from tests.engine.conftest import INSTALLATION, Listener
from tests.engine.probing import assert_blocked, probe
from tests.engine.subjects import DockerSubject, container, pod, until
from tests.waiting import BOUND_S

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="session")]

_PORT = 8000
_SERVE = ("python3", "-m", "http.server", "--directory", "/etc", str(_PORT))


async def started(subject: DockerSubject, pod_id: str, *, egress: bool) -> str:
    """Start a pod with a web server on all its addresses; gives its address once the server answers this host."""
    spec = pod(pod_id, container(subject.image, command=_SERVE), egress=egress)
    running = await subject.engine.start(spec)
    address = running.address
    assert address

    async def answers() -> bool:
        try:
            _, writer = await asyncio.open_connection(address, _PORT)
        except ConnectionRefusedError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    await until(answers)
    return address


async def gateway_of(subject: DockerSubject, pod_id: str) -> str:
    """This host's own address on the pod's bridge."""
    networks = (await subject.inspect(pod_id, "only"))["NetworkSettings"]["Networks"]
    (name,) = networks
    network = await asyncio.to_thread(subject.api.inspect_network, name)
    return str(network["IPAM"]["Config"][0]["Gateway"])


@pytest.mark.parametrize("egress", [True, False])
async def test_this_host_reaches_a_pods_ports(docker_subject: DockerSubject, egress: bool) -> None:
    address = await started(docker_subject, "reached", egress=egress)
    reader, writer = await asyncio.open_connection(address, _PORT)
    writer.write(b"GET /debian_version HTTP/1.0\r\n\r\n")
    async with asyncio.timeout(BOUND_S):
        assert b"200 OK" in await reader.readline()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("egress", [True, False])
async def test_a_pod_reaches_no_service_of_this_host(
    docker_subject: DockerSubject, other_listener: Listener, host_address: str, egress: bool
) -> None:
    await started(docker_subject, "prisoner", egress=egress)
    gateway = await gateway_of(docker_subject, "prisoner")
    other_listener.received.clear()
    for host in {gateway, host_address}:
        await assert_blocked(
            docker_subject, "prisoner", ("tcp", host, other_listener.port), ("udp", host, other_listener.port)
        )
    assert other_listener.received == []
    with socket.create_connection((host_address, other_listener.port), timeout=5) as own:
        assert own.recv(5) == b"hello"


async def test_loopback_in_a_pod_is_its_own(docker_subject: DockerSubject, other_listener: Listener) -> None:
    await started(docker_subject, "loopback", egress=True)
    target = ("tcp", "127.0.0.1", other_listener.port)
    assert await probe(docker_subject, "loopback", target) == {target: "ECONNREFUSED"}


@pytest.mark.parametrize("source", [True, False])
@pytest.mark.parametrize("target", [True, False])
async def test_a_pod_reaches_no_other_pod(docker_subject: DockerSubject, source: bool, target: bool) -> None:
    address = await started(docker_subject, "target", egress=target)
    await started(docker_subject, "source", egress=source)
    await assert_blocked(docker_subject, "source", ("tcp", address, _PORT), ("udp", address, _PORT))


async def test_a_pod_reaches_no_link_local_address(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "metadata", egress=True)
    target = ("tcp", "169.254.169.254", 80)
    # Refused by the guard itself, at once, not by the lack of a route somewhere behind it.
    assert await probe(docker_subject, "metadata", target) == {target: "EHOSTUNREACH"}


async def test_a_pod_with_egress_reaches_what_is_allowed_on_this_host(
    docker_subject: DockerSubject, allowed_listener: Listener, other_listener: Listener, host_address: str
) -> None:
    await started(docker_subject, "allowed", egress=True)
    opened, closed = ("tcp", host_address, allowed_listener.port), ("tcp", host_address, other_listener.port)
    assert await probe(docker_subject, "allowed", opened) == {opened: "open"}
    await assert_blocked(docker_subject, "allowed", closed)


async def test_an_offline_pod_does_not_even_reach_what_is_allowed(
    docker_subject: DockerSubject, allowed_listener: Listener, host_address: str
) -> None:
    await started(docker_subject, "sealed", egress=False)
    await assert_blocked(docker_subject, "sealed", ("tcp", host_address, allowed_listener.port))


async def test_a_pod_with_egress_reaches_the_internet(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "online", egress=True)
    await docker_subject.python("online", "only", registry.patiently(registry.CONNECT))


async def test_an_offline_pod_can_neither_connect_nor_resolve(docker_subject: DockerSubject) -> None:
    await started(docker_subject, "offline", egress=False)
    code, output = await docker_subject.run("offline", "only", ["python3", "-c", registry.CONNECT])
    assert code == 1
    assert "gaierror" in output
    await assert_blocked(docker_subject, "offline", ("tcp", "192.88.99.1", 443))


@pytest.mark.parametrize("egress", [True, False])
async def test_a_pod_has_no_ipv6_address(docker_subject: DockerSubject, egress: bool) -> None:
    await started(docker_subject, "v4", egress=egress)
    # Absent on a host without IPv6, empty where it is switched off.
    assert await docker_subject.output_of("v4", "only", "sh", "-c", "cat /proc/net/if_inet6 2>/dev/null || true") == ""


@pytest.mark.parametrize("egress", [True, False])
async def test_nobody_gets_the_address_of_a_pod_that_died_before_that_is_stopped(
    docker_subject: DockerSubject, egress: bool
) -> None:
    address = await started(docker_subject, "died", egress=egress)
    await docker_subject.remove_container("died", "only")
    assert await started(docker_subject, "next", egress=egress) != address


async def test_preparing_again_keeps_pods_confined_and_reachable(
    docker_subject: DockerSubject, other_listener: Listener, host_address: str
) -> None:
    address = await started(docker_subject, "steady", egress=True)
    await docker_subject.engine.prepare()
    socket.create_connection((address, _PORT), timeout=5).close()
    await assert_blocked(docker_subject, "steady", ("tcp", host_address, other_listener.port))


async def test_no_pod_starts_before_the_networks_are_prepared(base_image: str) -> None:
    engine = DockerEngine(f"{INSTALLATION}-unprepared", guard_image=base_image)
    try:
        with pytest.raises(EngineError, match="not prepared"):
            await engine.start(PodSpec(pod_id="early", containers=(container(base_image),)))
    finally:
        await engine.aclose()


async def test_preparing_without_the_guard_image_names_it() -> None:
    engine = DockerEngine(f"{INSTALLATION}-unprepared", guard_image="sandgate/absent:1")
    try:
        with pytest.raises(ImageMissing, match="sandgate/absent:1"):
            await engine.prepare()
    finally:
        await engine.aclose()


async def test_preparing_fails_with_the_reason_when_the_rules_cannot_be_set(
    docker_api: docker.APIClient, base_image: str
) -> None:
    made = docker_api.create_container(base_image, command=["rm", "/usr/sbin/nft"])["Id"]
    docker_api.start(made)
    docker_api.wait(made, timeout=30)
    image = docker_api.commit(made)["Id"]
    docker_api.remove_container(made)
    engine = DockerEngine(f"{INSTALLATION}-toothless", guard_image=image)
    try:
        with pytest.raises(EngineError, match="nft: not found"):
            await engine.prepare()
        with pytest.raises(EngineError, match="not prepared"):
            await engine.start(PodSpec(pod_id="early", containers=(container(base_image),)))
    finally:
        working = DockerEngine(f"{INSTALLATION}-toothless", guard_image=base_image)
        await working.remove_installation()
        await working.aclose()
        await engine.aclose()
        docker_api.remove_image(image, force=True)


async def test_no_pod_starts_once_the_rules_cannot_be_set_any_more(
    docker_api: docker.APIClient, base_image: str
) -> None:
    image = f"sandgate-test/guard:{os.getpid()}"
    repository, _, tag = image.partition(":")
    engine = DockerEngine(f"{INSTALLATION}-disarmed", guard_image=image)
    spec = PodSpec(pod_id="late", containers=(container(base_image),))
    try:
        docker_api.tag(base_image, repository, tag)
        await engine.prepare()
        docker_api.remove_image(image)
        with pytest.raises(ImageMissing):
            await engine.prepare()
        with pytest.raises(EngineError, match="not prepared"):
            await engine.start(spec)
        docker_api.tag(base_image, repository, tag)
        await engine.prepare()
        await engine.start(spec)
    finally:
        await engine.remove_installation()
        await engine.aclose()
        docker_api.remove_image(image)


async def test_removing_an_installation_leaves_no_network_and_no_rule(
    docker_api: docker.APIClient, base_image: str
) -> None:
    installation = f"{INSTALLATION}-removed"
    engine = DockerEngine(installation, guard_image=base_image)
    try:
        await engine.prepare()
        await engine.start(PodSpec(pod_id="last", containers=(container(base_image, volumes={"v": "/v"}),)))
        await engine.remove_installation()
        await engine.remove_installation()
        assert await engine.observe() == {}
    finally:
        await engine.aclose()
    assert docker_api.networks(filters={"label": f"sandgate.installation={installation}"}) == []
    assert docker_api.volumes(filters={"label": f"sandgate.installation={installation}"})["Volumes"] in (None, [])


async def test_installations_that_are_prepared_at_the_same_moment_get_networks_of_their_own(base_image: str) -> None:
    engines = [DockerEngine(f"tests-at-once-{number}-{os.getpid()}", guard_image=base_image) for number in range(4)]
    try:
        async with asyncio.TaskGroup() as group:
            for engine in engines:
                group.create_task(engine.prepare())
    finally:
        for engine in engines:
            await engine.remove_installation()
            await engine.aclose()
