"""The wiring of the TLS listener, apart from the rest: what makes certificates is loaded only where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from app.edge.certificates import KeyPair, LocalCa
from app.edge.edge import Edge
from app.edge.tls import TlsListener, make_server_context
from app.settings import Settings


def make_tls_listener(settings: Settings, edge: Edge, *, domain: str, port: int) -> TlsListener:
    """Raises: CertificateError."""
    return TlsListener(edge, host=settings.host, port=port, key_pair=_key_pair_of(settings, domain))


def check_certificate(settings: Settings, *, domain: str) -> None:
    """Raises: CertificateError for one that the listener could not use."""
    make_server_context(_key_pair_of(settings, domain)())


def local_ca_file(settings: Settings) -> Path | None:
    """What clients of the TLS listener have to trust; None if the operator brought a certificate."""
    return None if settings.tls_certificate is not None else _local_ca(settings).file


def _key_pair_of(settings: Settings, domain: str) -> Callable[[], KeyPair]:
    """The operator's certificate, or one from the local authority, renewed when asked for."""
    if settings.tls_certificate is None:
        return lambda: _local_ca(settings).key_pair(domain)
    pair = KeyPair(settings.tls_certificate, settings.tls_key or settings.tls_certificate)
    return lambda: pair


def _local_ca(settings: Settings) -> LocalCa:
    return LocalCa(settings.home / "ca")
