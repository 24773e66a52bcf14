"""What the engine's host has in force for single pods, and ways to harm it from outside."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from app.engines.network_guard import GuardNames
from app.engines.pod_ruleset import addresses_in, make_removal
from tests.engine.subjects import DockerSubject, until


async def addresses_in_force(subject: DockerSubject) -> set[str]:
    """Those that the packet filter has rules for."""
    listing = await _nft(subject, f"list table inet {GuardNames.of(subject.installation).pods_table}")
    return {str(address) for address in addresses_in(listing)}


async def flush_rules(subject: DockerSubject) -> None:
    """As whoever restarts a firewall on the host does, but with the rules of this installation's pods alone."""
    await _nft(subject, make_removal(GuardNames.of(subject.installation)))


async def proxy_container(subject: DockerSubject) -> str | None:
    """Its id, if it runs."""
    labels = [f"sandgate.resident={subject.installation}", "sandgate.resident.name=egress-proxy"]
    found = await asyncio.to_thread(subject.api.containers, filters={"label": labels})
    return str(found[0]["Id"]) if found else None


async def crash_proxy(subject: DockerSubject) -> None:
    """Returns once the engine has restarted it."""
    proxy = await proxy_container(subject)
    assert proxy is not None

    def crash() -> None:
        execution = subject.api.exec_create(proxy, ["pkill", "-KILL", "python3"])["Id"]
        subject.api.exec_start(execution, detach=True)

    async def has_restarted() -> bool:
        seen = await asyncio.to_thread(subject.api.inspect_container, proxy)
        return bool(seen["RestartCount"] and seen["State"]["Running"])

    await asyncio.to_thread(crash)
    await until(has_restarted)


async def in_proxy(subject: DockerSubject, *command: str) -> str:
    """Output of a command that root runs in the proxy's container."""

    def run() -> str:
        labels = [f"sandgate.resident={subject.installation}", "sandgate.resident.name=egress-proxy"]
        (found,) = subject.api.containers(filters={"label": labels})
        execution = subject.api.exec_create(found["Id"], list(command), user="0:0")["Id"]
        output = subject.api.exec_start(execution).decode()
        assert subject.api.exec_inspect(execution)["ExitCode"] == 0, output
        return str(output)

    return await asyncio.to_thread(run)


async def name_addresses(subject: DockerSubject, names: dict[str, str]) -> None:
    """Let the proxy resolve names to addresses of the test's choice."""
    lines = "\n".join(f"{address} {name}" for name, address in names.items())
    await in_proxy(subject, "sh", "-c", f"echo '{lines}' >> /etc/hosts")


async def told_to_proxy(subject: DockerSubject) -> dict[str, Any]:
    """Hosts by address, as the proxy keeps them."""
    told: dict[str, Any] = json.loads(await in_proxy(subject, "cat", "/tmp/sandgate-egress.json"))
    return told


async def _nft(subject: DockerSubject, command: str) -> str:
    def run() -> str:
        host = subject.api.create_host_config(network_mode="host", cap_add=["NET_ADMIN"])
        made = subject.api.create_container(subject.image, command=["nft", command], host_config=host)["Id"]
        try:
            subject.api.start(made)
            code = subject.api.wait(made, timeout=30)["StatusCode"]
            output: str = subject.api.logs(made).decode()
            assert code == 0, output
            return output
        finally:
            subject.api.remove_container(made, force=True)

    return await asyncio.to_thread(run)
