"""Who may talk to the gateway: bearer tokens, and browsers only from where they may. Pure.

A sandbox is reached under names the gateway can't know (the edge forwards the client's Host), so a Host that is not
ours proves nothing. What a page in a browser can't hide is its Origin, and only browsers send one: an Origin must be
local or one of the configured public hosts. "The same host as in Host" is not enough: under DNS rebinding both are the
attacker's. On the loopback interface only local programs connect, so there Host must be local or a public host, too.
"""

import hmac
import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from sandgate_gateway.asgi import HttpError


def check_bearer(header: str | None, tokens: Iterable[str]) -> str:
    """The accepted token. Compares with every token in constant time. Raises: HttpError 401."""
    scheme, _, given = (header or "").partition(" ")
    if scheme.lower() == "bearer":
        given_bytes = given.strip().encode("utf-8", "surrogatepass")
        found = [token for token in tokens if hmac.compare_digest(given_bytes, token.encode())]
        if found:
            return found[0]
    problem = ', error="invalid_token"' if header else ""
    raise HttpError(401, "A valid bearer token is required.", {"WWW-Authenticate": f'Bearer realm="mcp"{problem}'})


def check_browser(
    *, origin: str | None, host: str | None, server_address: str | None, public_hosts: tuple[str, ...]
) -> None:
    """Raises: HttpError 403 for a foreign Origin, 421 for a foreign Host on the loopback interface."""
    if origin is not None and not _is_origin_trusted(origin, public_hosts):
        raise HttpError(403, "Requests from pages of this Origin are not accepted.")
    if host is not None and not _is_host_served(host, server_address or "", public_hosts):
        raise HttpError(421, "This Host is not served here.")


@lru_cache(maxsize=64)
def _is_origin_trusted(origin: str, public_hosts: tuple[str, ...]) -> bool:
    return is_trusted_host(_host_of_origin(origin), public_hosts)


@lru_cache(maxsize=64)
def _is_host_served(host: str, server_address: str, public_hosts: tuple[str, ...]) -> bool:
    return not is_loopback(server_address) or is_trusted_host(_without_port(host), public_hosts)


def is_trusted_host(host: str, public_hosts: Iterable[str]) -> bool:
    return is_loopback(host) or any(
        host == public or (public.startswith("*.") and host.endswith(public[1:])) for public in public_hosts
    )


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of_origin(origin: str) -> str:
    _, separator, rest = origin.partition("://")
    return _without_port(rest) if separator else ""


def _without_port(host: str) -> str:
    """`[::1]:80` -> `::1`, `Example.com:80` -> `example.com`."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
