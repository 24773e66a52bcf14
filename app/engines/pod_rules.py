"""Which pod has which network rules, and bringing that into force on the engine's host.

Addresses are limited by packet filter rules, names by the egress proxy. Both hold what they were told, each in a
container or in the kernel, so pods stay limited while no control plane runs; and what they hold of pods that this
process knows nothing of yet is left as it is.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Set
from ipaddress import IPv4Address

from app.engines import pod_ruleset
from app.engines.interface import EgressRules
from app.engines.network_guard import GuardNames
from app.engines.pod_ruleset import HostView
from app.engines.resident_helper import ResidentHelper
from app.errors import EngineError, EngineUnavailable

_OPEN = EgressRules()


class PodRules:
    def __init__(self, names: GuardNames, *, packet_filter: ResidentHelper, proxy: ResidentHelper) -> None:
        self._names = names
        self._packet_filter = packet_filter
        self._proxy = proxy
        self._host: HostView | None = None
        self._rules: dict[IPv4Address, EgressRules] = {}
        self._inherited: frozenset[IPv4Address] = frozenset()
        """Addresses with rules that an earlier process gave them."""
        self._unsettled: set[IPv4Address] = set()
        """Addresses that may have other rules in force than here: asked for, and not known to be done."""
        self._proxy_is_used = False
        self._one_at_a_time = asyncio.Lock()

    @property
    def is_ready(self) -> bool:
        return self._host is not None

    async def renew(self, host: HostView, *, in_force: str, held: Iterable[IPv4Address]) -> None:
        """Make good what was lost and drop what belongs to no pod. To be called before any other method.

        `in_force` is what nft prints of the rules' table, `held` are the addresses of all pods there are.
        """
        async with self._one_at_a_time:
            present = pod_ruleset.addresses_in(in_force)
            if self._host is None:
                self._inherited = present & frozenset(held)
                self._unsettled |= present - self._inherited
                self._proxy_is_used = bool(present) and await self._proxy.is_there()
            self._inherited &= present
            self._host = host
            self._unsettled |= self._rules.keys()
            await self._settle()
            if not self._rules and not self._inherited:
                await self._dismiss()

    async def put(self, address: IPv4Address, rules: EgressRules) -> None:
        """Returns once `rules` are in force for everything that the pod of this address sends from now on.

        Raises: EngineError. The pod then has its old rules or these, and perhaps reaches none of its hosts.
        """
        async with self._one_at_a_time:
            if rules.is_open:
                if address not in self._rules.keys() | self._inherited | self._unsettled:
                    return
                self._rules.pop(address, None)
            else:
                self._rules[address] = rules
            self._inherited -= {address}
            self._unsettled.add(address)
            await self._settle()

    async def forget(self, address: IPv4Address) -> None:
        """The address belongs to no pod any more."""
        await self.put(address, _OPEN)

    async def remove_all(self) -> None:
        """Safe to repeat. The table is for the caller to remove."""
        async with self._one_at_a_time:
            self._host = None
            self._rules.clear()
            self._unsettled.clear()
            self._inherited = frozenset()
            await self._dismiss()

    def close(self) -> None:
        self._packet_filter.close()
        self._proxy.close()

    async def _settle(self) -> None:
        """Bring into force what is unsettled. What fails stays unsettled, and goes along with the next change.

        Packets first: while the proxy knows nothing of an address, it lets nothing through for it.
        """
        if not self._unsettled:
            return
        changing = frozenset(self._unsettled)
        try:
            await self._filter(changing)
        except EngineUnavailable:
            raise
        except EngineError:
            # Somebody may have flushed the host's packet filter, and what is left as it is would be missing.
            changing |= self._rules.keys()
            await self._filter(changing)
        hosts = {address: rules.allowed_hosts for address, rules in self._rules.items() if rules.allowed_hosts}
        if self._proxy_is_used or not changing.isdisjoint(hosts):
            self._proxy_is_used = True
            # All of them each time, because a proxy that had to be made anew knows nothing.
            told = {str(address): hosts.get(address) for address in changing | hosts.keys()}
            await self._proxy.ask(json.dumps(told), doing="tell the egress proxy which hosts a sandbox may reach")
        self._unsettled -= changing

    async def _filter(self, changing: Set[IPv4Address]) -> None:
        if self._host is None:
            raise RuntimeError("renew comes first")
        transaction = pod_ruleset.make_transaction(
            self._names,
            self._host,
            changed={address: self._rules[address] for address in changing & self._rules.keys()},
            gone=changing - self._rules.keys(),
            kept=(self._rules.keys() | self._inherited) - changing,
        )
        await self._packet_filter.ask(transaction, doing="set the network rules of a sandbox")

    async def _dismiss(self) -> None:
        """Nobody needs them."""
        await self._packet_filter.remove()
        await self._proxy.remove()
        self._proxy_is_used = False
