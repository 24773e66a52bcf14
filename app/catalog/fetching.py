"""Documents from the web, without letting whoever names a URL reach what only this machine can.

Every address of the host has to be public, and the connection goes to the address that was checked, so that a name
cannot change its meaning in between. Redirects are checked in the same way. Proxies of the environment are not used, as
they would resolve the name again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from urllib.parse import urljoin, urlsplit

import httpx

from app.catalog.documents import MAX_DOCUMENT_BYTES
from app.errors import InvalidRequest

_DEADLINE_S = 30.0
_MOST_REDIRECTS = 3


class FetchError(InvalidRequest):
    """A document could not be had. Says which, why, and what to do."""


async def fetch_document(url: str, *, loopback_allowed: bool = False) -> bytes:
    """The document behind an https URL; http and this machine only if `loopback_allowed`. Raises: FetchError."""
    try:
        async with asyncio.timeout(_DEADLINE_S), httpx.AsyncClient(trust_env=False, timeout=_DEADLINE_S) as client:
            for _ in range(_MOST_REDIRECTS + 1):
                answer = await _get(client, url, loopback_allowed=loopback_allowed)
                if isinstance(answer, bytes):
                    return answer
                url = answer
    except TimeoutError:
        raise FetchError(f"{_shown(url)}: did not answer within {_DEADLINE_S:g} s.") from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # the latter for where it was redirected to
        raise FetchError(f"{_shown(url)}: {error or type(error).__name__}. Check the URL, or import a file.") from error
    raise FetchError(f"{_shown(url)}: was redirected more than {_MOST_REDIRECTS} times.")


async def _get(client: httpx.AsyncClient, url: str, *, loopback_allowed: bool) -> bytes | str:
    """The document, or where it has moved to."""
    host, port = _check_url(url, loopback_allowed=loopback_allowed)
    address = await _checked_address(host, port, url, loopback_allowed=loopback_allowed)
    target = httpx.URL(url)
    # The host's name goes into the Host header and the certificate check; the socket goes to the checked address.
    request = client.build_request(
        "GET",
        target.copy_with(host=address),
        headers={"Host": target.netloc.decode()},
        extensions={"sni_hostname": host},
    )
    response = await client.send(request, stream=True)
    try:
        if response.has_redirect_location:
            return urljoin(url, response.headers["location"])
        if response.status_code != 200:
            raise FetchError(f"{_shown(url)}: answered {response.status_code}. Check the URL, or import a file.")
        content = bytearray()
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > MAX_DOCUMENT_BYTES:
                raise FetchError(f"{_shown(url)}: is larger than {MAX_DOCUMENT_BYTES // 1024 // 1024} MiB.")
        return bytes(content)
    finally:
        await response.aclose()


def _check_url(url: str, *, loopback_allowed: bool) -> tuple[str, int]:
    """Host and port. Raises: FetchError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise FetchError("The URL of a catalog cannot be read.") from None
    if parts.username is not None or parts.password is not None:
        raise FetchError(
            "The URL of a catalog holds a user name or password, which everyone with an API key would see."
            " Import a file."
        )
    if not host or parts.scheme not in ("https", "http"):
        raise FetchError(f"{_shown(url)}: a catalog is fetched from an https URL.")
    if parts.scheme == "http" and not loopback_allowed:
        raise FetchError(f"{_shown(url)}: only https is fetched. Import a file if it cannot be had that way.")
    return host, port or (443 if parts.scheme == "https" else 80)


async def _checked_address(host: str, port: int, url: str, *, loopback_allowed: bool) -> str:
    """One address of the host, all of which may be reached. Raises: FetchError."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # the latter for what no host name can be
        raise FetchError(f"{_shown(url)}: the host {host} is not known.") from None
    addresses = [ipaddress.ip_address(str(item[4][0]).partition("%")[0]) for item in found]
    for address in addresses:
        is_loopback = address.is_loopback and loopback_allowed
        if not is_loopback and (not _is_public(address) or urlsplit(url).scheme == "http"):
            raise FetchError(
                f"{_shown(url)}: only public hosts are asked, over https, and {host} is at {address}."
                " Import a file, or let the operator import it with `sandgate catalog import`."
            )
    return str(addresses[0])


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast


def _shown(url: str) -> str:
    """Without what may be a credential."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{(parts.netloc.rpartition('@')[2])}{parts.path}"[:300]
