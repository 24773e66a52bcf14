"""The two networks that pods of one installation sit on, and the guard around them, made through the engine alone.

The packet filter belongs to the engine's host, and the control plane may be neither root nor on that host. So the rules
are set by a short-lived container in the host's network namespace that has NET_ADMIN and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Network
from typing import Any

import docker
from docker.types import IPAMConfig, IPAMPool

from app.engines import network_guard
from app.engines.docker_client import DockerClient
from app.engines.docker_helpers import HelperContainers
from app.engines.docker_pods import INSTALLATION_LABEL, PodNetwork
from app.engines.network_guard import AllowedTarget, GuardNames, HostFacts
from app.errors import EngineError


class DockerNetworks:
    def __init__(
        self,
        client: DockerClient,
        helpers: HelperContainers,
        installation: str,
        *,
        guard_image: str,
        allowed: Sequence[AllowedTarget],
    ) -> None:
        self._client = client
        self._helpers = helpers
        self._installation = installation
        self._names = GuardNames.of(installation)
        self._guard_image = guard_image
        self._allowed = allowed
        self._sysctls: Mapping[str, str] | None = None

    async def prepare(self) -> None:
        """Make the networks that are missing and set the rules anew. Raises: EngineError if pods would be unguarded."""
        facts = HostFacts.from_survey(
            await self._on_host(network_guard.SURVEY, {}, doing="look at the engine's network")
        )
        await self._client.call(lambda api: self._make_networks(api, facts), doing="make the sandboxes' networks")
        names = self._names
        await self._on_host(
            network_guard.APPLY,
            {
                "BRIDGES": f"{names.egress_bridge} {names.offline_bridge}",
                "RULES": network_guard.make_ruleset(names, allowed=self._allowed, resolvers=facts.resolvers),
            },
            doing="set the network rules that confine sandboxes",
        )
        # Engine 26.0 gave IPv4-only containers link-local IPv6 addresses (CVE-2024-32473). The setting cannot be named
        # on a host without IPv6: the container would not start.
        self._sysctls = {"net.ipv6.conf.all.disable_ipv6": "1"} if facts.has_ipv6 else {}

    def for_pod(self, *, egress: bool) -> PodNetwork:
        """Raises: EngineError before `prepare`, so that no pod ever starts unguarded."""
        if self._sysctls is None:
            raise EngineError("The sandboxes' networks are not prepared yet.")
        if egress:
            return PodNetwork(self._names.egress_network, self._sysctls)
        # Up to Engine 26.0 name queries leave even an internal network when the host's resolver is on its loopback
        # (CVE-2024-29018), but not towards a name server that is given. The pod's own loopback is none; Docker answers
        # nothing then, so the options keep a look-up from taking 10 s to fail.
        return PodNetwork(
            self._names.offline_network, self._sysctls, dns=("127.0.0.1",), dns_options=("timeout:1", "attempts:1")
        )

    async def remove(self) -> None:
        """Remove networks and rules. Safe to repeat; the networks must be empty."""
        self._sysctls = None
        await self._client.call(self._remove_networks, doing="remove the sandboxes' networks")
        await self._on_host(
            network_guard.REMOVE,
            {"RULES": network_guard.make_removal(self._names)},
            doing="remove the network rules",
        )

    def _make_networks(self, api: docker.APIClient, facts: HostFacts) -> None:
        wanted = {
            self._names.egress_network: self._names.egress_bridge,
            self._names.offline_network: self._names.offline_bridge,
        }
        present = api.networks()
        taken = [*facts.routes, *_subnets(present)]
        for name in wanted.keys() - {network["Name"] for network in present}:
            subnet = network_guard.free_subnet(taken)
            taken.append(subnet)
            api.create_network(
                name,
                driver="bridge",
                internal=name == self._names.offline_network,
                check_duplicate=True,
                ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=str(subnet), gateway=str(subnet[1]))]),
                options={
                    "com.docker.network.bridge.name": wanted[name],
                    "com.docker.network.bridge.enable_icc": "false",
                },
                labels={INSTALLATION_LABEL: self._installation},
            )

    def _remove_networks(self, api: docker.APIClient) -> None:
        for network in api.networks(filters={"label": f"{INSTALLATION_LABEL}={self._installation}"}):
            api.remove_network(network["Id"])

    async def _on_host(self, script: str, environment: Mapping[str, str], *, doing: str) -> str:
        return await self._helpers.run_on_host(self._guard_image, script, environment, doing=doing)


def _subnets(networks: Sequence[Mapping[str, Any]]) -> Iterator[IPv4Network]:
    for network in networks:
        for pool in (network.get("IPAM") or {}).get("Config") or ():
            if "Subnet" in pool and ":" not in pool["Subnet"]:
                yield IPv4Network(pool["Subnet"], strict=False)
