"""The two networks that pods of one installation sit on, and the guard around them, made through the engine alone.

The packet filter belongs to the engine's host, and the control plane may be neither root nor on that host. So the rules
are set by containers in the host's network namespace that have NET_ADMIN and nothing else: the guard's by a short-lived
one, those of single pods by one that stays while there are any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import docker
from docker.errors import APIError
from docker.types import IPAMConfig, IPAMPool

from app.engines import network_guard, pod_ruleset
from app.engines.docker_client import DockerClient
from app.engines.docker_helpers import HelperContainers
from app.engines.docker_pods import INSTALLATION_LABEL, PodNetwork, attachments, label_filter
from app.engines.egress_helpers import make_packet_filter, make_proxy
from app.engines.interface import EgressRules
from app.engines.network_guard import AllowedTarget, GuardNames, HostFacts
from app.engines.pod_addresses import PodAddresses, split_subnet
from app.engines.pod_rules import PodRules
from app.engines.pod_ruleset import HostView
from app.errors import EngineNotPrepared, EngineOutOfSpace, EngineUnavailable

_TAKEN = "ool overlaps with other one"
"""What the engine says of a subnet that another network has, with a large P or a small one."""


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
        self._allowed = tuple(allowed)
        self._sysctls: Mapping[str, str] | None = None
        self._addresses: Mapping[str, PodAddresses] | None = None
        """By network."""
        self._rules = PodRules(
            self._names,
            packet_filter=make_packet_filter(client, installation, guard_image),
            proxy=make_proxy(client, installation, guard_image, self._names),
        )

    async def prepare(self, *, rules_of_pods: bool) -> None:
        """Make the networks that are missing and set the rules anew, those of single pods too if asked for.

        Without them no pod gets an address from `for_new_pod`.

        Raises: EngineError if pods would be unguarded. Unless the engine is only away or full, and starts nothing
        anyway, there is no network for any pod from then on, until this succeeds.
        """
        try:
            await self._prepare(rules_of_pods)
        except (EngineUnavailable, EngineOutOfSpace):
            raise
        except Exception:
            self._sysctls = None
            raise

    async def _prepare(self, rules_of_pods: bool) -> None:
        facts = await self._survey()
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
        if rules_of_pods:
            await self._renew_rules(facts)
        # Engine 26.0 gave IPv4-only containers link-local IPv6 addresses (CVE-2024-32473). The setting cannot be named
        # on a host without IPv6: the container would not start.
        self._sysctls = {"net.ipv6.conf.all.disable_ipv6": "1"} if facts.has_ipv6 else {}

    def for_new_pod(self, pod_id: str, *, egress: bool) -> PodNetwork:
        """With an address that the pod keeps until `forget`. Raises: EngineNotPrepared, EngineError."""
        network = self.for_pod(egress=egress)
        if self._addresses is None:
            raise EngineNotPrepared
        return replace(network, address=self._addresses[network.name].take(pod_id))

    async def set_rules(self, address: IPv4Address, rules: EgressRules) -> None:
        """Returns once they are in force. `address` is that of a pod with egress, made or about to be."""
        if not self._rules.is_ready:
            await self._renew_rules(await self._survey())
        await self._rules.put(address, rules)

    async def forget(self, pod_id: str) -> None:
        """The pod's containers are gone. Safe to repeat."""
        for network, addresses in (self._addresses or {}).items():
            if (address := addresses.of(pod_id)) is None:
                continue
            if not self.is_offline(network):
                await self._rules.forget(address)
            addresses.release(pod_id)

    def for_pod(self, *, egress: bool) -> PodNetwork:
        """With any address. Raises: EngineNotPrepared unless `prepare` was done: no pod ever starts unguarded."""
        if self._sysctls is None:
            raise EngineNotPrepared
        if egress:
            return PodNetwork(self._names.egress_network, self._sysctls)
        # Up to Engine 26.0 name queries leave even an internal network when the host's resolver is on its loopback
        # (CVE-2024-29018), but not towards a name server that is given. The pod's own loopback is none; Docker answers
        # nothing then, so the options keep a look-up from taking 10 s to fail.
        return PodNetwork(
            self._names.offline_network, self._sysctls, dns=("127.0.0.1",), dns_options=("timeout:1", "attempts:1")
        )

    async def remove(self) -> tuple[str, ...]:
        """Remove networks and rules; gives the networks that the engine takes for used. Safe to repeat."""
        self._sysctls = None
        self._addresses = None
        await self._rules.remove_all()
        held = await self._client.call(self._remove_networks, doing="remove the sandboxes' networks")
        removal = f"{network_guard.make_removal(self._names)}\n{pod_ruleset.make_removal(self._names)}"
        await self._on_host(network_guard.REMOVE, {"RULES": removal}, doing="remove the network rules")
        return held

    def close(self) -> None:
        self._rules.close()

    def is_offline(self, network: str) -> bool:
        return network == self._names.offline_network

    async def _survey(self) -> HostFacts:
        environment = {"PODS_TABLE": self._names.pods_table}
        output = await self._on_host(network_guard.SURVEY, environment, doing="look at the engine's network")
        return HostFacts.from_survey(output)

    async def _renew_rules(self, facts: HostFacts) -> None:
        if self._addresses is None:
            found = await self._client.call(self._addresses_of_pods, doing="look at the sandboxes' addresses")
            self._addresses = self._addresses or found
        host = HostView(facts.resolvers, self._allowed)
        held = self._addresses[self._names.egress_network].all().values()
        await self._rules.renew(host, in_force=facts.pods_table, held=held)

    def _addresses_of_pods(self, api: docker.APIClient) -> Mapping[str, PodAddresses]:
        addresses = {
            network: PodAddresses(IPv4Network(api.inspect_network(network)["IPAM"]["Config"][0]["Subnet"]))
            for network in (self._names.egress_network, self._names.offline_network)
        }
        listing = api.containers(all=True, filters=label_filter(self._installation))
        for pod_id, attachment in attachments(listing).items():
            if attachment.network in addresses and attachment.address is not None:
                addresses[attachment.network].hold(pod_id, attachment.address)
        return addresses

    def _make_networks(self, api: docker.APIClient, facts: HostFacts) -> None:
        wanted = {
            self._names.egress_network: self._names.egress_bridge,
            self._names.offline_network: self._names.offline_bridge,
        }
        present = api.networks()
        taken = [*facts.routes, *_subnets(present)]
        for name in wanted.keys() - {network["Name"] for network in present}:
            while True:
                subnet = network_guard.free_subnet(taken)
                taken.append(subnet)
                try:
                    self._make_network(api, name, wanted[name], subnet)
                except APIError as error:
                    if _TAKEN not in str(error.explanation):
                        raise
                    continue  # by another installation, which made a network at the same moment
                break

    def _make_network(self, api: docker.APIClient, name: str, bridge: str, subnet: IPv4Network) -> None:
        api.create_network(
            name,
            driver="bridge",
            internal=name == self._names.offline_network,
            check_duplicate=True,
            ipam=IPAMConfig(
                pool_configs=[
                    IPAMPool(subnet=str(subnet), iprange=str(split_subnet(subnet)[0]), gateway=str(subnet[1]))
                ]
            ),
            options={
                "com.docker.network.bridge.name": bridge,
                "com.docker.network.bridge.enable_icc": "false",
            },
            labels={INSTALLATION_LABEL: self._installation},
        )

    def _remove_networks(self, api: docker.APIClient) -> tuple[str, ...]:
        held = []
        for network in api.networks(filters={"label": f"{INSTALLATION_LABEL}={self._installation}"}):
            try:
                api.remove_network(network["Id"])
            except APIError as error:
                if error.status_code != 403:  # "has active endpoints"
                    raise
                held.append(network["Name"])
        return tuple(held)

    async def _on_host(self, script: str, environment: Mapping[str, str], *, doing: str) -> str:
        return await self._helpers.run_on_host(self._guard_image, script, environment, doing=doing)


def _subnets(networks: Sequence[Mapping[str, Any]]) -> Iterator[IPv4Network]:
    for network in networks:
        for pool in (network.get("IPAM") or {}).get("Config") or ():
            if "Subnet" in pool and ":" not in pool["Subnet"]:
                yield IPv4Network(pool["Subnet"], strict=False)
