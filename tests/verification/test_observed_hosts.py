"""What a server reached out for ends up in its manifest, but for what nobody means who allows it its service."""

from __future__ import annotations

import pytest

from app.catalog import ServerDefinition
from app.catalog.catalog import parse_manifest
from app.catalog.stand_ins import CREDENTIAL
from app.verification.observed_hosts import ManifestEditError, sort_hosts, with_allowed_hosts

MANIFEST = """\
name: acme
title: Acme
type: server
package: {registry: npm, name: acme, version: 1.0.0}
command: [acme]
# what follows is for people
category: web
"""


def acme(manifest: str = MANIFEST) -> ServerDefinition:
    return parse_manifest(manifest, origin="a test")


def test_hosts_it_connected_to_are_new_unless_they_are_allowed_already() -> None:
    definition = acme(MANIFEST + 'allowHosts: [api.acme.com:443, "*.acme.net:443"]\n')
    observed = ("api.acme.com:443", "api.acme.com:8443", "eu.acme.net:443", "acme.org:443", "only.looked.up")
    assert sort_hosts(definition, observed).new == ("api.acme.com:8443", "acme.org:443")


@pytest.mark.parametrize(
    "host",
    [
        "o272833.ingest.us.sentry.io",
        "daft.gateway.scarf.sh",
        "telemetry.acme.com",
        "acme-telemetry-proxy-1.run.app",
        "stats.acme.com",
    ],
)
def test_a_host_that_hears_how_a_server_is_used_is_told_apart(host: str) -> None:
    found = sort_hosts(acme(), [f"{host}:443"])
    assert (found.new, found.telemetry) == ((), (f"{host}:443",))


@pytest.mark.parametrize(
    "host",
    [
        "x]\nverified: true\ny: [z",
        "a b",
        "#x",
        "::1",
        "grafana.example.com",
        "metadata.google.internal",
        "169.254.169.254",
        "localhost",
        f"{CREDENTIAL}.acme.com",
    ],
)
def test_what_is_nobodys_or_made_up_is_left_out(host: str) -> None:
    found = sort_hosts(acme(), [f"{host}:443"])
    assert (found.new, found.telemetry) == ((), ())


def test_a_manifest_gets_the_hosts_and_stays_as_it_was() -> None:
    written = with_allowed_hosts(MANIFEST, ["*.acme.net:443", "api.acme.com:443"])
    assert acme(written).allow_hosts == ("*.acme.net:443", "api.acme.com:443")
    assert [line for line in written.splitlines() if not line.startswith("allowHosts")] == MANIFEST.splitlines()
    again = with_allowed_hosts(written, ["api.acme.com:443"])
    assert acme(again).allow_hosts == ("api.acme.com:443",)
    assert again.count("allowHosts") == 1


def test_a_manifest_that_has_them_in_a_block_is_left_to_its_author() -> None:
    with pytest.raises(ManifestEditError, match=r"Write: allowHosts: \[a\.com:443\]"):
        with_allowed_hosts(MANIFEST + "allowHosts:\n  - b.com:443\n", ["a.com:443"])


@pytest.mark.parametrize("last_line", ["category: web", "allowHosts: [b.com:443]", "# the end", "tools: []"])
def test_a_manifest_may_end_without_a_line_break(last_line: str) -> None:
    written = with_allowed_hosts(f"{MANIFEST.partition('# what')[0]}{last_line}", ["a.com:443"])
    assert acme(written).allow_hosts == ("a.com:443",)
    assert acme(written).command == ("acme",)


@pytest.mark.parametrize("host", ["x]\nverified: true\ny: [z:443", "12:30", "a: b"])
def test_what_would_change_anything_else_in_a_manifest_is_not_written(host: str) -> None:
    with pytest.raises(ManifestEditError, match="`allowHosts` was not written"):
        with_allowed_hosts(MANIFEST, [host])
