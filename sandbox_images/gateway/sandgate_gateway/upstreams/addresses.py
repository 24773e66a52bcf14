"""Which addresses a remote server may have. Names are resolved once, and only what was checked is connected to.

A name that first shows a public address and then a private one (DNS rebinding) gains nothing by it, because aiohttp
connects to the very addresses that the resolver returned.
"""

import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver

from sandgate_gateway.upstreams.connection import CouldNotConnectError

KEEP_ALIVE_IDLE_S, KEEP_ALIVE_PAUSE_S, KEEP_ALIVE_PROBES = 60, 15, 4
"""A peer that is gone without a word is noticed after two minutes, on streams that are silent for hours, too."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class PrivateAddressError(OSError):
    """The name of a server leads to an address that is not public."""

    def __init__(self, address: str) -> None:
        super().__init__(f"the address {address} is not public")
        self.address = address


class PublicResolver(ThreadedResolver):
    """Raises PrivateAddressError if any address of a name is not public."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        for each in found:
            if not is_public(each["host"]):
                raise PrivateAddressError(each["host"])
        return found


def check_public(url: str) -> None:
    """What can be told from a URL alone. Raises: CouldNotConnectError, which is final."""
    parts = urlsplit(url)
    if parts.scheme != "https":
        raise CouldNotConnectError(
            "is not connected to: its URL is not https, and its catalog entry does not allow that (allowPrivate)",
            final=True,
        )
    if _is_address(parts.hostname or "") and not is_public(parts.hostname or ""):
        raise refusal(parts.hostname or "")


def refusal(address: str) -> CouldNotConnectError:
    return CouldNotConnectError(
        f"is not connected to: its address {address} is not public, and its catalog entry does not allow that "
        "(allowPrivate)",
        final=True,
    )


def is_public(address: str) -> bool:
    """Whether an address is one of the internet, by IANA's registries of special-purpose addresses (RFC 6890). An
    address that stands for another one inside is judged by that one, too."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if not ip.is_global or ip.is_multicast:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return True
    inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if ip in _NAT64:
        inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return all(each is None or is_public(str(each)) for each in inner)


def make_socket(address: tuple[Any, ...]) -> socket.socket:
    """For aiohttp: a socket that finds out by itself when the other side is gone."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_IDLE_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE_PAUSE_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEP_ALIVE_PROBES)
    return made


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
