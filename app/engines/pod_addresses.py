"""Addresses that pods have for as long as they live, handed out here rather than by the engine. No I/O.

A pod's network rules are kept by its address. So the address must be known before the pod's first packet, must stay
when the pod is halted and resumed, and must not pass to another pod while rules of the first are still in place. Nor
must it while requests for the first are still sent there: a pod may die, and be missed a while later only.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

from app.errors import EngineError


def split_subnet(subnet: IPv4Network) -> tuple[IPv4Network, IPv4Network]:
    """The half that the engine may hand out of, with the gateway in it, and ours."""
    engines, ours = subnet.subnets()
    return engines, ours


class PodAddresses:
    """Which pod of one network has which address. A freed address is the last one to be handed out again."""

    def __init__(self, subnet: IPv4Network) -> None:
        self._ours = split_subnet(subnet)[1]
        self._next = 0
        self._by_pod: dict[str, IPv4Address] = {}

    def of(self, pod_id: str) -> IPv4Address | None:
        return self._by_pod.get(pod_id)

    def take(self, pod_id: str) -> IPv4Address:
        """The pod's address, a free one if it has none yet. Raises: EngineError when all are taken."""
        if (known := self._by_pod.get(pod_id)) is not None:
            return known
        taken = set(self._by_pod.values())
        # The network's last address is its broadcast address.
        usable = self._ours.num_addresses - 1
        for _ in range(usable):
            candidate = self._ours[self._next]
            self._next = (self._next + 1) % usable
            if candidate not in taken:
                self._by_pod[pod_id] = candidate
                return candidate
        raise EngineError(f"All {usable} addresses for sandboxes are taken. Stop some that are not needed.")

    def hold(self, pod_id: str, address: IPv4Address) -> None:
        """Note the address of a pod that was there before."""
        self._by_pod[pod_id] = address

    def release(self, pod_id: str) -> None:
        self._by_pod.pop(pod_id, None)

    def all(self) -> Mapping[str, IPv4Address]:
        return dict(self._by_pod)
