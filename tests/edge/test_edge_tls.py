"""TLS for a sandbox domain: the certificates made, the listener with real clients, and the check for `doctor`."""

from __future__ import annotations

import asyncio
import ssl
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect

from app.edge.certificates import CertificateError, KeyPair, LocalCa
from app.edge.edge import Edge
from app.edge.tls import TlsListener, check_domain, make_server_context, resolve_by_system
from tests.edge.conftest import DOMAIN
from tests.edge.serving import Pod, Pods, answer, new_address, read_body, serving, with_lifespan
from tests.waiting import BOUND_S


@pytest.fixture
def ca(tmp_path: Path) -> LocalCa:
    return LocalCa(tmp_path / "ca")


def certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def names(file: Path) -> list[str]:
    alternative = certificate(file).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return alternative.value.get_values_for_type(x509.DNSName)


def test_the_certificate_names_the_wildcard_the_domain_and_the_api(ca: LocalCa) -> None:
    assert names(ca.key_pair("sbx.localhost:18443").certificate) == [
        "*.sbx.localhost",
        "sbx.localhost",
        "api.sbx.localhost",
    ]


def test_keys_are_the_owners_only(ca: LocalCa) -> None:
    ca.key_pair(DOMAIN)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in ca.file.parent.iterdir()}
    assert modes == {"ca.pem": 0o644, "ca-key.pem": 0o600, "server.pem": 0o644, "server-key.pem": 0o600}


def test_asking_again_changes_nothing(ca: LocalCa) -> None:
    pair = ca.key_pair(DOMAIN)
    before = (ca.file.read_bytes(), pair.certificate.read_bytes(), pair.key.read_bytes())
    again = LocalCa(ca.file.parent).key_pair(DOMAIN)
    assert (ca.file.read_bytes(), again.certificate.read_bytes(), again.key.read_bytes()) == before


def test_another_domain_gets_an_authority_of_its_own(ca: LocalCa) -> None:
    ca.key_pair(DOMAIN)
    before = ca.file.read_bytes()
    pair = ca.key_pair("other.example.test")
    assert ca.file.read_bytes() != before
    certificate(pair.certificate).verify_directly_issued_by(certificate(ca.file))


def test_a_certificate_near_its_end_is_renewed_under_the_same_authority(ca: LocalCa) -> None:
    pair = ca.key_pair(DOMAIN)
    authority = ca.file.read_bytes()
    signer = serialization.load_pem_private_key((ca.file.parent / "ca-key.pem").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    old = certificate(pair.certificate)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(signer.public_key())
        .serial_number(1)
        .not_valid_before(old.not_valid_before_utc)
        .not_valid_after(datetime.now(UTC) + timedelta(days=9))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    pair.certificate.write_bytes(builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    renewed = certificate(ca.key_pair(DOMAIN).certificate)
    assert renewed.serial_number != 1
    assert renewed.not_valid_after_utc - datetime.now(UTC) > timedelta(days=29)
    assert ca.file.read_bytes() == authority


@pytest.mark.parametrize(
    "domain", ["localhost", "", "sbx..test", "*.sbx.test", "-a.test", "sbx.test/x", "a b.test", "sbx_1.test"]
)
def test_a_domain_that_cannot_have_a_wildcard_is_refused(ca: LocalCa, domain: str) -> None:
    with pytest.raises(CertificateError):
        ca.key_pair(domain)


def test_the_authority_is_bound_to_its_domain(ca: LocalCa) -> None:
    ca.key_pair(DOMAIN)
    found = certificate(ca.file).extensions.get_extension_for_class(x509.NameConstraints)
    assert found.critical
    assert found.value.permitted_subtrees == [x509.DNSName(DOMAIN)]
    assert certificate(ca.file).extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_an_operators_certificate_that_does_not_fit_its_key_is_refused(tmp_path: Path) -> None:
    one, two = LocalCa(tmp_path / "1").key_pair(DOMAIN), LocalCa(tmp_path / "2").key_pair(DOMAIN)
    with pytest.raises(CertificateError, match="belong together"):
        make_server_context(KeyPair(one.certificate, two.key))
    with pytest.raises(CertificateError, match=r"missing\.pem"):
        make_server_context(KeyPair(tmp_path / "missing.pem", one.key))


def test_a_key_with_a_password_is_refused_instead_of_asked_for(tmp_path: Path) -> None:
    pair = LocalCa(tmp_path).key_pair(DOMAIN)
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    encryption = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    with pytest.raises(CertificateError, match="without a password"):
        make_server_context(KeyPair(pair.certificate, locked))


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        await send({"type": "websocket.send", "text": message["text"]})
        await send({"type": "websocket.close"})
        return
    body = await read_body(receive)
    await answer(send, scope["raw_path"] + b" " + body)


@pytest.fixture
async def listener(ca: LocalCa) -> AsyncIterator[TlsListener]:
    pod = Pod("isandbox", new_address())
    assert pod.address
    pods = Pods(pod)
    async with Edge(application, pods, sandbox_domain=DOMAIN, resume=pods.resume) as edge:
        with serving(with_lifespan(application), pod.address, 50005):
            async with TlsListener(edge, host="127.0.0.1", port=0, key_pair=lambda: ca.key_pair(DOMAIN)) as listener:
                yield listener


@pytest.fixture
def trust(ca: LocalCa, listener: TlsListener) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca.file)


@pytest.mark.parametrize("host", [f"50005-isandbox.{DOMAIN}", f"api.{DOMAIN}", DOMAIN])
async def test_a_client_that_trusts_the_authority_is_served(
    listener: TlsListener, trust: ssl.SSLContext, host: str
) -> None:
    async with httpx.AsyncClient(verify=trust, timeout=BOUND_S, trust_env=False) as client:
        response = await client.post(
            f"https://127.0.0.1:{listener.port}/mcp",
            headers={"Host": f"{host}:{listener.port}"},
            extensions={"sni_hostname": host},
            content=b"x" * 1_000_000,
        )
    assert response.text == "/mcp " + "x" * 1_000_000


async def test_a_websocket_passes_over_tls(listener: TlsListener, trust: ssl.SSLContext) -> None:
    url = f"wss://50005-isandbox.{DOMAIN}:{listener.port}/"
    async with connect(url, host="127.0.0.1", port=listener.port, ssl=trust, proxy=None) as client:
        await client.send("hello")
        assert await client.recv() == "hello"


async def test_names_that_the_certificate_does_not_cover_are_not_trusted(
    listener: TlsListener, trust: ssl.SSLContext
) -> None:
    for name in ("example.test", f"a.b.{DOMAIN}"):
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", listener.port, ssl=trust, server_hostname=name)


async def test_a_listener_on_a_taken_port_says_so(listener: TlsListener, ca: LocalCa) -> None:
    other = TlsListener(application, host="127.0.0.1", port=listener.port, key_pair=lambda: ca.key_pair(DOMAIN))
    with pytest.raises(OSError, match="in use"):
        await other.__aenter__()


async def here(name: str) -> list[str]:
    return ["127.0.0.1"]


async def elsewhere(name: str) -> list[str]:
    return ["192.0.2.1"]


async def nowhere(name: str) -> list[str]:
    raise OSError(name)


async def test_the_check_is_content_where_everything_fits(listener: TlsListener, ca: LocalCa) -> None:
    findings = await check_domain(f"{DOMAIN}:{listener.port}", ca_file=ca.file, resolve=here)
    assert [finding.ok for finding in findings] == [True, True]
    assert f"50005-isandbox.{DOMAIN} resolves to 127.0.0.1" in findings[0].message
    assert str(ca.file) in findings[1].message


async def test_the_check_names_a_missing_record_and_its_remedies(ca: LocalCa) -> None:
    (finding,) = await check_domain(f"{DOMAIN}:18443", ca_file=ca.file, resolve=nowhere)
    assert not finding.ok
    assert finding.remedy is not None
    for part in (f"address=/{DOMAIN}/127.0.0.1", "/etc/hosts", f"*.{DOMAIN}"):
        assert part in finding.remedy


async def test_the_check_tells_a_foreign_certificate(listener: TlsListener, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    findings = await check_domain(f"{DOMAIN}:{listener.port}", ca_file=other, resolve=here)
    assert [finding.ok for finding in findings] == [True, False]
    assert "not valid" in findings[1].message


async def test_the_check_tells_a_listener_without_tls(ca: LocalCa) -> None:
    ca.key_pair(DOMAIN)
    with serving(with_lifespan(application)) as plain:
        findings = await check_domain(f"{DOMAIN}:{plain.port}", ca_file=ca.file, resolve=here)
    assert [finding.ok for finding in findings] == [True, False]
    assert "does not speak TLS" in findings[1].message


async def test_the_check_tells_a_closed_port_and_a_missing_authority(listener: TlsListener, ca: LocalCa) -> None:
    closed = new_address()

    async def at_closed(name: str) -> list[str]:
        return [closed]

    _, finding = await check_domain(f"{DOMAIN}:9", ca_file=ca.file, resolve=at_closed)
    assert "nothing accepts connections" in finding.message
    _, finding = await check_domain(f"{DOMAIN}:9", ca_file=ca.file.with_name("none.pem"), resolve=here)
    assert "cannot read" in finding.message


async def test_the_check_tells_an_address_of_another_machine(ca: LocalCa) -> None:
    missing = ca.file.with_name("none.pem")
    findings = await check_domain(DOMAIN, ca_file=missing, resolve=elsewhere)
    assert [finding.ok for finding in findings] == [False, False]
    assert "not an address of this machine" in findings[0].message


async def test_names_are_resolved_by_the_system() -> None:
    assert await resolve_by_system("127.0.0.1") == ["127.0.0.1"]


async def test_the_check_refuses_a_domain_of_one_label() -> None:
    (finding,) = await check_domain("localhost", ca_file=None, resolve=here)
    assert not finding.ok
    assert "second label" in finding.message
