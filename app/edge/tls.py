"""HTTPS for a sandbox domain: a second listener for the same application, and a check that clients can reach it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from starlette.types import ASGIApp

from app.edge.certificates import CertificateError, KeyPair, checked_domain
from app.edge.server import SHUTDOWN_S, EmbeddedServer, server_config

_RELOADED_EVERY_S = 24 * 3600.0
_CHECK_TIMEOUT_S = 5.0


_log = structlog.get_logger()


def make_server_context(pair: KeyPair) -> ssl.SSLContext:
    """TLS 1.2 or later, HTTP/1.1 by ALPN. Raises: CertificateError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_key_pair(context, pair)
    return context


def load_key_pair(context: ssl.SSLContext, pair: KeyPair) -> None:
    """Handshakes from now on use this certificate. Raises: CertificateError."""
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(pair.certificate, pair.key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = error.strerror if isinstance(error, OSError) else error
        raise CertificateError(
            f"Cannot use the certificate {pair.certificate} with the key {pair.key}: {reason}. "
            "Both must be readable PEM files that belong together, the key without a password."
        ) from error


class TlsListener:
    """Serves an application over TLS while it is entered. The application's lifespan is another server's.

    `key_pair` is asked at the start and once a day, so that a renewed certificate is used without a restart.
    """

    def __init__(self, app: ASGIApp, *, host: str, port: int, key_pair: Callable[[], KeyPair]) -> None:
        """Args: port: 0 for any free one, see `port`."""
        self._app = app
        self._address = (host, port)
        self._key_pair = key_pair
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        """The port listened on. Only while entered."""
        return int(self._socket.getsockname()[1])

    async def __aenter__(self) -> Self:
        """Returns once connections are accepted. Raises: CertificateError, or OSError if the port is taken."""
        context = make_server_context(self._key_pair())
        self._socket = _listen(*self._address)
        config = server_config(self._app, lifespan="off", ssl_context_factory=lambda config, default: context)
        self._server = EmbeddedServer(config)
        self._tasks = [
            asyncio.create_task(self._server.serve([self._socket]), name="tls-listener"),
            asyncio.create_task(self._reload(context), name="tls-certificate"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        serving, reloading = self._tasks
        reloading.cancel()
        await asyncio.wait([serving, reloading], timeout=SHUTDOWN_S + 5)
        serving.cancel()
        self._socket.close()

    async def _reload(self, context: ssl.SSLContext) -> None:
        while True:
            await asyncio.sleep(_RELOADED_EVERY_S)
            try:
                load_key_pair(context, self._key_pair())
            except CertificateError as error:
                _log.error("tls_certificate_not_reloaded", reason=str(error))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `check_domain` looked at."""

    ok: bool
    subject: str
    message: str
    remedy: str | None = None


Resolve = Callable[[str], Awaitable[list[str]]]
"""The addresses of a name. Raises: OSError."""


async def resolve_by_system(name: str) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def check_domain(domain: str, *, ca_file: Path | None, resolve: Resolve = resolve_by_system) -> list[Finding]:
    """Whether a client on this machine can reach `https://<port>-<id>.<domain>`, and what to do if not.

    Args:
        domain: as in the setting `sandbox_domain`; 443 is meant if it has no port.
        ca_file: of the local CA; None for a certificate that clients trust anyway.
    """
    try:
        name = checked_domain(domain)
    except CertificateError as error:
        return [Finding(False, "sandbox domain", str(error), "Change SANDGATE_SANDBOX_DOMAIN.")]
    port = int(domain.partition(":")[2] or 443)
    example = f"50005-isandbox.{name}"
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            addresses = await resolve(example)
    except OSError:  # TimeoutError is one
        return [Finding(False, "sandbox domain", f"{example} does not resolve here", _dns_remedy(name))]
    here = all(map(_is_local, addresses))
    where = f"{example} resolves to {', '.join(addresses)}" + ("" if here else ", not an address of this machine")
    tls = await _check_handshake(example, addresses[0], port, ca_file)
    # An address of another machine is right if what answers there has the certificate: a reverse proxy, for example.
    resolved = Finding(here or tls.ok, "sandbox domain", where, None if here or tls.ok else _dns_remedy(name))
    return [resolved, tls]


async def _check_handshake(name: str, address: str, port: int, ca_file: Path | None) -> Finding:
    subject = "sandbox TLS"
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        remedy = "Start Sandgate once with SANDGATE_TLS_PORT set; it makes the certificate authority."
        return Finding(False, subject, f"cannot read {ca_file}: {error.strerror}", remedy)
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            _, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=name)
    except ssl.SSLCertVerificationError as error:
        message = f"the certificate on port {port} is not valid for {name}: {error.verify_message}"
        return Finding(False, subject, message, "Check SANDGATE_TLS_CERTIFICATE, or what else listens on this port.")
    except ssl.SSLError as error:
        message = f"what listens on port {port} does not speak TLS: {error.reason}"
        return Finding(False, subject, message, "Check SANDGATE_TLS_PORT, or what else listens on this port.")
    except OSError:
        message = f"nothing accepts connections on {address}, port {port}"
        return Finding(False, subject, message, "Set SANDGATE_TLS_PORT, start Sandgate, and open the port.")
    writer.transport.abort()
    if ca_file is None:
        return Finding(True, subject, f"the certificate for *.{name.partition('.')[2]} is trusted")
    trust = f"clients trust it with SSL_CERT_FILE={ca_file} (Python) or NODE_EXTRA_CA_CERTS={ca_file} (Node)"
    return Finding(True, subject, f"the local CA's certificate is in use; {trust}")


def _dns_remedy(name: str) -> str:
    return (
        f"Have *.{name} resolve to this machine: a wildcard record in your DNS; or a line "
        f"`address=/{name}/127.0.0.1` for dnsmasq; or, for one sandbox, `127.0.0.1 50005-<id>.{name}` in /etc/hosts."
    )


def _is_local(address: str) -> bool:
    """Whether this machine has the address: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
