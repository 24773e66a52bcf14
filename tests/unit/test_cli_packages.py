"""`sandgate catalog verify` with results that are there already: nothing is started, and no engine is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.catalog.catalog import read_manifest
from app.cli_packages import catalog
from app.settings import ROOT
from app.verification import Results, Verification

MANIFEST = """\
name: acme
title: Acme
type: server
package: {registry: npm, name: acme, version: 1.0.0}
command: [acme]
"""


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a server of the operator's own, which was tried before, as were all that are shipped, without their hosts."""
    monkeypatch.setenv("SANDGATE_HOME", str(tmp_path))
    file = tmp_path / "catalog" / "servers" / "acme.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(MANIFEST)
    shipped = json.loads((ROOT / "catalog" / "verified.json").read_text())
    silent = {name: {**record, "hosts": []} for name, record in shipped.items()}
    (tmp_path / "catalog" / "verified.json").write_text(json.dumps(silent))
    definition = read_manifest(file)
    assert definition.package is not None
    seen = Verification(
        state="verified",
        digest=definition.package.digest,
        tools=3,
        hosts=("api.acme.com:443", "o1.ingest.us.sentry.io:443"),
    )
    Results(tmp_path / "catalog" / "verified.json").put(definition, seen)
    return file


def verify(*arguments: str) -> str:
    result = CliRunner().invoke(catalog, ["verify", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_hosts_that_were_seen_are_written_into_the_manifest_when_it_is_asked_for(manifest: Path) -> None:
    verify()
    assert manifest.read_text() == MANIFEST
    printed = verify("--write-hosts")
    assert read_manifest(manifest).allow_hosts == ("api.acme.com:443",)
    assert "o1.ingest.us.sentry.io" not in manifest.read_text()
    assert "gains api.acme.com:443" in printed


def test_the_page_has_the_servers_of_this_installation(manifest: Path, tmp_path: Path) -> None:
    verify("--page", str(tmp_path / "page.md"))
    row = "| `acme` | Acme | 3 |  |  | api.acme.com:443, o1.ingest.us.sentry.io:443 |"
    assert row in (tmp_path / "page.md").read_text().splitlines()
