"""The `network` object of the E2B contract: read, checked, and turned into what an engine enforces. No I/O.

Its form is that of `SandboxNetworkConfig` (create) and `SandboxNetworkUpdateConfig` (update) in the E2B API. Names of
hosts are allowed only, never denied, and only where everything else is denied: a name can be held against what a
program says in an HTTP or TLS connection, and proves nothing of any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import Any

from app.engines.interface import ALL_TRAFFIC, EgressRules
from app.errors import InvalidRequest

_MOST_ENTRIES = 500
_MOST_NAME_SERVERS = 10
_LONGEST_NAME = 253
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_HOST = re.compile(rf"(?:\*|(?:\*\.)?(?:{_LABEL}\.)*{_LABEL})")
_NUMERIC = re.compile(r"[0-9.:/-]+")
"""An address or range that was meant as one: never a name, because no top-level domain is a number (RFC 3696)."""
_REQUEST_HOST = re.compile(r"(?:[A-Za-z0-9._-]|\$\{PORT\})+(?::(?:[0-9]{1,5}|\$\{PORT\}))?")

_OUTBOUND = ("allowOut", "denyOut", "dnsServers", "egressProxy", "rules")
_INBOUND = ("allowPublicTraffic", "maskRequestHost", "httpsPorts")
_REFUSED = {
    "egressProxy": "sandboxes cannot be put behind a proxy of yours",
    "rules": "requests that leave a sandbox are not rewritten",
    "httpsPorts": "services in a sandbox are reached over plain HTTP",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRules:
    """What a sandbox may reach and who may reach it. Entries are kept as they were given."""

    allow_out: tuple[str, ...] = ()
    deny_out: tuple[str, ...] = ()
    dns_servers: tuple[str, ...] | None = None
    """None: the default name servers. Matters only where `allow_out` names hosts."""
    allow_internet_access: bool = True
    """False is the same as all traffic in `deny_out`."""
    allow_public_traffic: bool = True
    """Whether the sandbox's ports are reached without its traffic access token. For the edge."""
    mask_request_host: str | None = None
    """The Host header that services in the sandbox see; `${PORT}` stands for their port. For the edge."""

    @classmethod
    def parse(cls, network: Mapping[str, Any] | None, *, allow_internet_access: bool | None = None) -> NetworkRules:
        """The `network` of a new sandbox, and its `allow_internet_access`. Raises: InvalidRequest naming the field."""
        given = _checked_fields(network or {}, (*_OUTBOUND, *_INBOUND))
        return cls(
            allow_public_traffic=_flag(given, "allowPublicTraffic") is not False,
            mask_request_host=_request_host(given.get("maskRequestHost")),
        )._with_outbound(given, allow_internet_access)

    def updated(self, network: Mapping[str, Any]) -> NetworkRules:
        """These with everything outbound replaced, as `PUT /sandboxes/{id}/network` does: what it omits is cleared.

        Raises: InvalidRequest naming the field.
        """
        given = _checked_fields(network, (*_OUTBOUND, "allow_internet_access"))
        return self._with_outbound(given, _flag(given, "allow_internet_access"))

    def to_wire(self) -> dict[str, Any]:
        """The `network` object of a sandbox's details. Without what was not given, so empty for the default."""
        wire: dict[str, Any] = {}
        if self.allow_out:
            wire["allowOut"] = list(self.allow_out)
        if self.deny_out:
            wire["denyOut"] = list(self.deny_out)
        if self.dns_servers is not None:
            wire["dnsServers"] = list(self.dns_servers)
        if not self.allow_public_traffic:
            wire["allowPublicTraffic"] = False
        if self.mask_request_host is not None:
            wire["maskRequestHost"] = self.mask_request_host
        return wire

    @property
    def egress(self) -> EgressRules:
        """What the engine has to enforce."""
        networks = [network for entry in self.allow_out if isinstance(network := _network(entry), IPv4Network)]
        return EgressRules(
            allowed=tuple(networks),
            allowed_hosts=tuple(entry.lower() for entry in self.allow_out if _network(entry) is None),
            denied=self._denied,
            name_servers=None if self.dns_servers is None else tuple(map(IPv4Address, self.dns_servers)),
        )

    @property
    def _denied(self) -> tuple[IPv4Network, ...]:
        networks = [network for entry in self.deny_out if isinstance(network := _network(entry), IPv4Network)]
        return (*networks, *(() if self.allow_internet_access else (ALL_TRAFFIC,)))

    def _with_outbound(self, given: Mapping[str, Any], allow_internet_access: bool | None) -> NetworkRules:
        rules = replace(
            self,
            allow_out=_entries(given, "allowOut"),
            deny_out=_entries(given, "denyOut"),
            dns_servers=_name_servers(given),
            allow_internet_access=allow_internet_access is not False,
        )
        for entry in rules.allow_out:
            _check_allowed(entry)
        for entry in rules.deny_out:
            _check_denied(entry)
        hosts = [entry for entry in rules.allow_out if _network(entry) is None]
        if hosts and ALL_TRAFFIC not in rules._denied:
            raise InvalidRequest(
                f"network.allowOut names hosts ({hosts[0]!r}), so network.denyOut must hold"
                " '0.0.0.0/0' (ALL_TRAFFIC): hosts can only be allowed where everything else is denied."
            )
        return rules


def _checked_fields(network: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """What is given and not null. Raises: InvalidRequest for a field that would have no effect."""
    given = {name: value for name, value in network.items() if value is not None}
    for name, value in given.items():
        if name not in known:
            raise InvalidRequest(f"network.{name} is not known here; known are {', '.join(known)}.")
        if name in _REFUSED and value not in ({}, []):
            raise InvalidRequest(f"network.{name} is not supported by this server: {_REFUSED[name]}. Leave it out.")
    return given


def _entries(given: Mapping[str, Any], field: str) -> tuple[str, ...]:
    entries = given.get(field, [])
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise InvalidRequest(f"network.{field} must be a list of strings.")
    if len(entries) > _MOST_ENTRIES:
        raise InvalidRequest(f"network.{field} has {len(entries)} entries; at most {_MOST_ENTRIES} are possible.")
    return tuple(entries)


def _name_servers(given: Mapping[str, Any]) -> tuple[str, ...] | None:
    if "dnsServers" not in given:
        return None
    servers = _entries(given, "dnsServers")
    if len(servers) > _MOST_NAME_SERVERS:
        raise InvalidRequest(
            f"network.dnsServers has {len(servers)} entries; at most {_MOST_NAME_SERVERS} are possible."
        )
    for server in servers:
        try:
            IPv4Address(server)
        except ValueError:
            raise InvalidRequest(f"network.dnsServers: {server!r} is not an IPv4 address.") from None
    return servers


def _flag(given: Mapping[str, Any], field: str) -> bool | None:
    value = given.get(field)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"network.{field} must be true or false.")
    return value


def _request_host(value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and _REQUEST_HOST.fullmatch(value)):
        raise InvalidRequest(
            "network.maskRequestHost must be a host name in ASCII, with a port if need be; ${PORT} stands for the port."
        )
    return value


def _check_allowed(entry: str) -> None:
    network = _network(entry)
    if isinstance(network, IPv6Network):
        raise InvalidRequest(f"network.allowOut: {entry!r} cannot be allowed, because sandboxes have no IPv6.")
    if network is not None:
        _check_specified(entry, network, "allowOut")
    elif len(entry) > _LONGEST_NAME or _NUMERIC.fullmatch(entry) or not _HOST.fullmatch(entry.lower()):
        raise InvalidRequest(
            f"network.allowOut: {entry!r} is not an IPv4 address, a CIDR block or a host name. Names are written in"
            " ASCII without a port; '*.example.com' stands for all below example.com."
        )


def _check_denied(entry: str) -> None:
    network = _network(entry)
    if network is None:
        raise InvalidRequest(
            f"network.denyOut: {entry!r} is not an IP address or CIDR block. Hosts cannot be denied by name: deny"
            " '0.0.0.0/0' (ALL_TRAFFIC) and allow those that are needed."
        )
    if isinstance(network, IPv4Network):
        _check_specified(entry, network, "denyOut")


def _check_specified(entry: str, network: IPv4Network, field: str) -> None:
    if network.network_address == IPv4Address(0) and network != ALL_TRAFFIC:
        raise InvalidRequest(f"network.{field}: {entry!r} is no destination; all traffic is '0.0.0.0/0'.")


def _network(entry: str) -> IPv4Network | IPv6Network | None:
    """None for what is neither an address nor a block, such as a name. Bits behind the prefix do not matter."""
    try:
        return ip_network(entry, strict=False)
    except ValueError:
        return None
