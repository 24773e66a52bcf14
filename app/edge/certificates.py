"""A certificate authority of this installation's own, for sandbox domains that no public one vouches for.

It may sign names of one domain only (name constraints, RFC 5280 section 4.2.1.10), so trusting it risks nothing else.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from app.errors import SandgateError
from app.ids_and_time import utc_now

_CA_LIFE = timedelta(days=3650)
_LEAF_LIFE = timedelta(days=30)
_RENEWED_BEFORE_END = timedelta(days=10)
_BACKDATED = timedelta(hours=1)
"""For clients whose clock is behind."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class CertificateError(SandgateError):
    """The TLS listener cannot have a certificate. The text says why, for an operator."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """PEM files: a certificate chain and its private key."""

    certificate: Path
    key: Path


class LocalCa:
    """Lives in a folder: `ca.pem` for clients to trust, its key, and the server certificate with its key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.file = folder / "ca.pem"

    def key_pair(self, domain: str) -> KeyPair:
        """A certificate for `<domain>`, `*.<domain>` and `api.<domain>`, made or renewed if needed. Safe to repeat.

        A port in `domain` is ignored. A change of domain makes a new authority, which clients have to trust anew.

        Raises: CertificateError.
        """
        name = checked_domain(domain)
        pair = KeyPair(self._folder / "server.pem", self._folder / "server-key.pem")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            authority, signer = self._authority(name)
            if not (pair.key.exists() and _is_current(_read_certificate(pair.certificate), authority, name)):
                key = ec.generate_private_key(ec.SECP256R1())
                leaf = _make_leaf(name, key, authority, signer)
                _write(pair.key, _pem(key), mode=0o600)
                _write(pair.certificate, leaf.public_bytes(serialization.Encoding.PEM), mode=0o644)
        except OSError as error:
            raise CertificateError(f"Cannot keep certificates in {self._folder}: {error.strerror}") from error
        return pair

    def _authority(self, name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """The authority for this domain, made if there is none or it has become too old."""
        key_file = self._folder / "ca-key.pem"
        authority = _read_certificate(self.file)
        if authority is not None and key_file.exists() and _may_sign(authority, name):
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
            if isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == authority.public_key():
                return authority, key
        key = ec.generate_private_key(ec.SECP256R1())
        authority = _make_authority(name, key)
        _write(key_file, _pem(key), mode=0o600)
        _write(self.file, authority.public_bytes(serialization.Encoding.PEM), mode=0o644)
        return authority, key


def checked_domain(domain: str) -> str:
    """The domain in lower case and without its port. Raises: CertificateError."""
    name = domain.partition(":")[0].lower().rstrip(".")
    labels = name.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise CertificateError(f"{domain!r} is not a domain name")
    if len(labels) < 2:
        # TLS clients do not accept a wildcard directly below a top-level name.
        raise CertificateError(f"{domain!r} needs a second label for its wildcard, for example sbx.{name}")
    return name


def _make_authority(name: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    now = utc_now()
    subject = _subject(f"Sandgate local CA for {name} {now:%Y-%m-%d}")
    constraints = x509.NameConstraints(
        permitted_subtrees=[x509.DNSName(name)],
        excluded_subtrees=[x509.IPAddress(ipaddress.ip_network(every)) for every in ("0.0.0.0/0", "::/0")],
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        _builder(subject, subject, key, now, _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(constraints, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )


def _make_leaf(
    name: str, key: ec.EllipticCurvePrivateKey, authority: x509.Certificate, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    names = x509.SubjectAlternativeName([x509.DNSName(each) for each in _names(name)])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return (
        _builder(_subject(name[:64]), authority.subject, key, utc_now(), _LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(issuer, critical=False)
        .sign(signer, hashes.SHA256())
    )


def _names(name: str) -> list[str]:
    return [f"*.{name}", name, f"api.{name}"]


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _may_sign(authority: x509.Certificate, name: str) -> bool:
    """Whether the authority is for this domain and outlives a certificate signed now."""
    constraints = authority.extensions.get_extension_for_class(x509.NameConstraints).value
    return (
        constraints.permitted_subtrees == [x509.DNSName(name)]
        and authority.not_valid_after_utc > utc_now() + _LEAF_LIFE
    )


def _is_current(leaf: x509.Certificate | None, authority: x509.Certificate, name: str) -> bool:
    if leaf is None or leaf.not_valid_after_utc < utc_now() + _RENEWED_BEFORE_END:
        return False
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    try:
        leaf.verify_directly_issued_by(authority)
    except (ValueError, InvalidSignature):
        return False
    return names.get_values_for_type(x509.DNSName) == _names(name)


def _read_certificate(file: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CertificateError(f"{file} is not a PEM certificate; remove it to have it made anew") from error


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(file: Path, content: bytes, *, mode: int) -> None:
    """Replaces the file in one step; a key is never readable by others, not even for a moment."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
        out.write(content)
    draft.replace(file)
