"""Network rules of single pods, as nft text. No I/O.

They have a table of their own beside the guard's, so that neither is touched when the other is replaced. The table only
ever denies: the guard has judged a packet before, and the host's own filters judge it after.

Each pod with rules has chains that are named after its address, and each hook of the table sends a packet to the chains
of its pod. Whatever changes, the hooks' chains are written anew with it in one transaction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from app.engines.interface import ALL_TRAFFIC, EgressRules
from app.engines.network_guard import (
    HTTP_DIVERSION_PORT,
    NEVER_FORWARDED,
    REJECT,
    TLS_DIVERSION_PORT,
    AllowedTarget,
    GuardNames,
)

_SENT, _ANSWERED, _DIVERT = "out", "in", "divert"
"""Chains of a pod: for what it sends, for what answers it, and for what goes to the proxy instead."""


@dataclass(frozen=True, slots=True)
class HostView:
    """What the rules have to know of the engine's host."""

    resolvers: tuple[IPv4Address, ...]
    """Name servers that Docker asks in a pod's name, from the pod's own address."""
    allowed: tuple[AllowedTarget, ...]
    """What every pod may reach in spite of the guard, and so the egress proxy for them."""


def make_transaction(
    names: GuardNames,
    host: HostView,
    *,
    changed: Mapping[IPv4Address, EgressRules],
    gone: Iterable[IPv4Address],
    kept: Iterable[IPv4Address],
) -> str:
    """One nft transaction, on one line, that gives `changed` their rules and forgets `gone`.

    `kept` are all others that have rules, which stay; nft refuses the transaction if it knows nothing of one of them.
    """
    table = f"inet {names.pods_table}"
    lines = [f"add table {table}", *(f"add chain {table} {name} {{ {hook} }}" for name, hook in _HOOKS.items())]
    lines += [f"flush chain {table} {name}" for name in _HOOKS]
    for chain in ("refuse", _PROXY):
        lines += [f"add chain {table} {chain}", f"flush chain {table} {chain}"]
    lines += _rules(table, "refuse", [f"meta l4proto tcp ct state established {_RESET}", REJECT])
    for address, rules in changed.items():
        for chain, texts in _pod_chains(address, rules, host).items():
            lines += [f"add chain {table} {chain}", f"flush chain {table} {chain}", *_rules(table, chain, texts)]
    limited = sorted([*changed, *kept])
    lines += _rules(table, "to_host", _to_host(names, limited))
    lines += _rules(table, "through_host", _through_host(names, limited))
    lines += _rules(table, "divert", _divert(names, limited))
    lines += _rules(table, _PROXY, _proxy_sends(names, host))
    # Never by what others are: a connection that its program has closed has no owner any more, and still has to end.
    lines += _rules(table, "from_host", [f"meta skuid {names.proxy_uid} goto {_PROXY}"])
    for address in gone:
        # Made first, so that forgetting is silent where there is nothing.
        chains = [f"{table} {_chain(kind, address)}" for kind in (_SENT, _ANSWERED, _DIVERT)]
        lines += [f"{verb} chain {chain}" for chain in chains for verb in ("add", "flush", "delete")]
    return "; ".join(lines)


def make_removal(names: GuardNames) -> str:
    """Removes the table; silent where there is none."""
    return f"add table inet {names.pods_table}; delete table inet {names.pods_table}"


def addresses_in(listing: str) -> frozenset[IPv4Address]:
    """Addresses that have chains, from what `nft list table` prints of the table."""
    found = re.findall(rf"^\s*chain {_SENT}_(\d+_\d+_\d+_\d+) ", listing, flags=re.MULTILINE)
    return frozenset(IPv4Address(address.replace("_", ".")) for address in found)


_PROXY = "proxy_sends"
_RESET = "reject with tcp reset"
_HOOKS = {
    "to_host": "type filter hook input priority filter - 9; policy accept;",
    "through_host": "type filter hook forward priority filter - 9; policy accept;",
    "divert": "type nat hook prerouting priority dstnat - 10; policy accept;",
    "from_host": "type filter hook output priority filter - 10; policy accept;",
}


def _pod_chains(address: IPv4Address, rules: EgressRules, host: HostView) -> dict[str, list[str]]:
    """Rules by chain. Answers are judged like what they answer, so that what was open ends as soon as it is denied."""
    open_to: list[str] = []
    open_from: list[str] = []
    if rules.allowed_hosts and rules.name_servers is not None:
        if rules.name_servers:
            servers = _set(IPv4Network(server) for server in rules.name_servers)
            open_to.append(f"ip daddr {servers} accept")
            open_from.append(f"ip saddr {servers} accept")
    elif host.resolvers and (rules.allowed_hosts or ALL_TRAFFIC not in rules.denied):
        # Whoever denies a private range does not mean the name servers that happen to be in it.
        servers = _set(IPv4Network(server) for server in host.resolvers)
        open_to.append(f"ip daddr {servers} meta l4proto {{ tcp, udp }} th dport 53 accept")
        open_from.append(f"ip saddr {servers} meta l4proto {{ tcp, udp }} th sport 53 accept")
    if rules.allowed:
        open_to.append(f"ip daddr {_set(rules.allowed)} accept")
        open_from.append(f"ip saddr {_set(rules.allowed)} accept")
    everything = ALL_TRAFFIC in rules.denied
    denied = "" if everything else _set(rules.denied)
    diverted = []
    if rules.allowed_hosts:
        diverted = [f"ip daddr {_set(rules.allowed)} accept"] if rules.allowed else []
        diverted += [
            f"tcp dport 80 redirect to :{HTTP_DIVERSION_PORT}",
            f"tcp dport 443 redirect to :{TLS_DIVERSION_PORT}",
        ]
    return {
        _chain(_SENT, address): [*open_to, "goto refuse" if everything else f"ip daddr {denied} goto refuse"],
        _chain(_ANSWERED, address): [*open_from, "drop" if everything else f"ip saddr {denied} drop"],
        _chain(_DIVERT, address): diverted,
    }


def _to_host(names: GuardNames, limited: Sequence[IPv4Address]) -> list[str]:
    pods = f'iifname "{names.egress_bridge}"'
    return [
        f"{pods} ct direction reply accept",
        # What was diverted: the proxy judges it by its name.
        f"{pods} ct status dnat tcp dport {{ {HTTP_DIVERSION_PORT}, {TLS_DIVERSION_PORT} }} accept",
        *_dispatch(f"{pods} ip saddr", _SENT, limited),
    ]


def _through_host(names: GuardNames, limited: Sequence[IPv4Address]) -> list[str]:
    return [
        # Errors that routers on the way report, too large packets among them, are of the connection they speak of.
        f'oifname "{names.egress_bridge}" ct state related accept',
        *_dispatch(f'iifname "{names.egress_bridge}" ct direction original ip saddr', _SENT, limited),
        *_dispatch(f'oifname "{names.egress_bridge}" ct direction reply ip daddr', _ANSWERED, limited),
    ]


def _divert(names: GuardNames, limited: Sequence[IPv4Address]) -> list[str]:
    return _dispatch(f'iifname "{names.egress_bridge}" ip saddr', _DIVERT, limited)


def _proxy_sends(names: GuardNames, host: HostView) -> list[str]:
    """What the guard forbids to pods, forbidden to the proxy that speaks for them, whatever a name resolves to."""
    return [
        "ct direction reply accept",
        *(f"ip daddr {target.network} tcp dport {target.port} accept" for target in host.allowed),
        *(f"ip daddr {address} meta l4proto {{ tcp, udp }} th dport 53 accept" for address in host.resolvers),
        "ip daddr 127.0.0.0/8 meta l4proto { tcp, udp } th dport 53 accept",
        f"meta nfproto ipv6 {REJECT}",
        f'oifname {{ "{names.egress_bridge}", "{names.offline_bridge}" }} {REJECT}',
        f"fib daddr type != unicast {REJECT}",
        f"ip daddr {NEVER_FORWARDED} {REJECT}",
    ]


def _dispatch(match: str, chain: str, addresses: Sequence[IPv4Address]) -> list[str]:
    if not addresses:
        return []
    elements = ", ".join(f"{address} : jump {_chain(chain, address)}" for address in addresses)
    return [f"{match} vmap {{ {elements} }}"]


def _chain(kind: str, address: IPv4Address) -> str:
    return f"{kind}_{address}".replace(".", "_")


def _rules(table: str, chain: str, texts: Iterable[str]) -> list[str]:
    return [f"add rule {table} {chain} {text}" for text in texts]


def _set(networks: Iterable[IPv4Network]) -> str:
    return "{ " + ", ".join(map(str, collapse_addresses(networks))) + " }"
