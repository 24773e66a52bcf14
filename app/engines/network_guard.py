"""What a pod may reach: address ranges for its networks and the packet filter rules on the engine's host. No I/O.

Why an own nftables table, and why it looks as it does: docs/decisions/0002-network-guard.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

from app.errors import EngineError

_PREFIX_LENGTH = 20
"""4,093 pods. A Linux bridge has 1,023 ports (BR_PORT_BITS), so this never is the limit, and Docker, which hands out
addresses in sequence, comes back to a used one late."""

_ADDRESS_POOLS = (
    IPv4Network("198.18.0.0/15"),  # for benchmarks (RFC 2544): nothing a pod wants to reach has such an address
    IPv4Network("172.16.0.0/12"),
    IPv4Network("10.0.0.0/8"),
)

NEVER_FORWARDED = "{ 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3 }"
"""Link-local addresses, where clouds keep their metadata services, and what is no host's address."""

REJECT = "reject with icmpx admin-prohibited"

HTTP_DIVERSION_PORT = 15080
"""Where the egress proxy on the host takes what pods with rules for host names send to port 80 of anywhere."""
TLS_DIVERSION_PORT = 15443
"""The same for port 443."""

_FIRST_PROXY_UID = 0x7000_0000
"""The first of a range that no user and no container manager takes (systemd's UIDS-GIDS document)."""

SURVEY = """
echo routes; cat /proc/net/route
echo resolvers; cat /etc/resolv.conf
echo ipv6; test ! -e /proc/sys/net/ipv6 || echo yes
echo pods; nft list table inet "$PODS_TABLE" 2>/dev/null || true
"""
"""Shell commands for a container in the host's network namespace; `HostFacts.from_survey` reads the output."""

APPLY = """
for bridge in $BRIDGES; do
    test -e "/sys/class/net/$bridge" || { echo "bridge $bridge is not in the host's network namespace"; exit 1; }
done
test "$(cat /proc/sys/net/bridge/bridge-nf-call-iptables)" = 1 || {
    echo "net.bridge.bridge-nf-call-iptables is not 1, so traffic between containers cannot be filtered"; exit 1; }
printf '%s' "$RULES" | nft -f -
"""
"""The same, with `BRIDGES` and `RULES` in the environment. nft replaces the whole table in one transaction."""

REMOVE = """printf '%s' "$RULES" | nft -f -"""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the guard needs to know of the engine's host."""

    routes: tuple[IPv4Network, ...]
    """Destinations of the main routing table, the default route left out."""
    resolvers: tuple[IPv4Address, ...]
    """Name servers that Docker forwards a container's queries to, from the container's own address."""
    has_ipv6: bool
    pods_table: str
    """What nft prints of the table with the rules of single pods; empty where there is none."""

    @classmethod
    def from_survey(cls, output: str) -> HostFacts:
        routes, resolvers, ipv6, pods = re.split(r"^(?:routes|resolvers|ipv6|pods)\n", output, flags=re.MULTILINE)[1:]
        return cls(
            routes=tuple(_routes(routes)),
            resolvers=tuple(_resolvers(resolvers)),
            has_ipv6=ipv6.strip() == "yes",
            pods_table=pods,
        )


@dataclass(frozen=True, slots=True)
class AllowedTarget:
    """A TCP port that pods with egress may reach although the guard would drop it."""

    network: IPv4Network
    port: int

    @classmethod
    def parse(cls, text: str) -> AllowedTarget:
        """Of `<IPv4 address or network>:<port>`. Raises: ValueError."""
        network, _, port = text.rpartition(":")
        try:
            target = cls(IPv4Network(network), int(port))
        except (AddressValueError, NetmaskValueError, ValueError) as error:
            raise ValueError(f"{text!r} is not <IPv4 address or network>:<port>: {error}") from error
        if not 0 < target.port < 65536:
            raise ValueError(f"{text!r}: the port must be between 1 and 65535")
        return target


@dataclass(frozen=True, slots=True)
class GuardNames:
    """Names on the engine's host, apart for each installation."""

    egress_network: str
    offline_network: str
    egress_bridge: str
    """At most 15 characters (IFNAMSIZ)."""
    offline_bridge: str
    table: str
    pods_table: str
    """Rules of single pods."""
    proxy_uid: int
    """What the egress proxy runs as, so that rules can tell its packets from all others that the host sends."""

    @classmethod
    def of(cls, installation: str) -> GuardNames:
        short = hashlib.sha256(installation.encode()).hexdigest()[:8]
        return cls(
            egress_network=f"sandgate-{installation}",
            offline_network=f"sandgate-{installation}-offline",
            egress_bridge=f"sg-{short}-on",
            offline_bridge=f"sg-{short}-off",
            table=f"sandgate_{short}",
            pods_table=f"sandgate_{short}_pods",
            proxy_uid=_FIRST_PROXY_UID + int(short[:6], 16),
        )


def free_subnet(taken: Iterable[IPv4Network]) -> IPv4Network:
    """The first range for a network of pods that overlaps with none of `taken`. Raises: EngineError."""
    taken = list(taken)
    for pool in _ADDRESS_POOLS:
        for candidate in pool.subnets(new_prefix=_PREFIX_LENGTH):
            if not any(candidate.overlaps(network) for network in taken):
                return candidate
    raise EngineError("The engine's host has no free private address range for the sandboxes' networks.")


def make_ruleset(names: GuardNames, *, allowed: Sequence[AllowedTarget], resolvers: Sequence[IPv4Address]) -> str:
    """The guard's table, as one nft transaction that replaces an earlier one.

    No named sets: nft 1.0.6 (Debian 12) crashes on reading one that a newer nft wrote, and with it every tool of the
    host that lists rules.
    """
    pods = f'{{ "{names.egress_bridge}", "{names.offline_bridge}" }}'
    exceptions = [f"ip daddr {target.network} tcp dport {target.port} accept" for target in allowed]
    exceptions += [f"ip daddr {address} meta l4proto {{ tcp, udp }} th dport 53 accept" for address in resolvers]
    indented = "".join(f"\n        {rule}" for rule in exceptions)
    diverted = f"tcp dport {{ {HTTP_DIVERSION_PORT}, {TLS_DIVERSION_PORT} }}"
    return f"""\
{make_removal(names)}
table inet {names.table} {{
    chain from_pods {{
        ct state established,related accept
        oifname {pods} drop
        iifname "{names.offline_bridge}" {REJECT}{indented}
    }}
    chain to_host {{
        type filter hook input priority filter - 10; policy accept;
        iifname {pods} jump from_pods
        iifname "{names.egress_bridge}" ct status dnat {diverted} accept
        iifname {pods} {REJECT}
    }}
    chain through_host {{
        type filter hook forward priority filter - 10; policy accept;
        iifname {pods} jump from_pods
        iifname {pods} ct status dnat {REJECT}
        iifname {pods} ip daddr {NEVER_FORWARDED} {REJECT}
        iifname {pods} meta nfproto ipv6 {REJECT}
        oifname {pods} ct state established,related accept
        oifname {pods} drop
    }}
}}
"""


def make_removal(names: GuardNames) -> str:
    """Removes the table; the first line makes it, so that removing is silent where there is none."""
    return f"table inet {names.table}\ndelete table inet {names.table}"


def _routes(table: str) -> Iterable[IPv4Network]:
    """Of `/proc/net/route` (proc_pid_net(5)): addresses in hexadecimal and the byte order of a little-endian host."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        destination, mask = (int.from_bytes(bytes.fromhex(fields[column]), "little") for column in (1, 7))
        if mask:
            yield IPv4Network((destination, mask.bit_count()))


def _resolvers(resolv_conf: str) -> Iterable[IPv4Address]:
    for line in resolv_conf.splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0] == "nameserver" and ":" not in fields[1]:
            address = IPv4Address(fields[1])
            if not address.is_loopback:
                yield address
