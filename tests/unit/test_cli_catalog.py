"""`sandgate catalog` on an installation of its own: what is imported is found again by the next command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli_catalog import catalog
from app.errors import NotFound

DOCUMENT = {
    "registry": {
        "acmeboard": {"title": "Acmeboard", "image": "mcp/acmeboard", "description": "Gauges and quibbles."},
        "acmecluster": {"title": "K8s", "image": "mcp/k8s", "volumes": ["/root/.kube:/kube"]},
        "broken": {"title": "B", "image": 5},
    }
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SANDGATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "docker.json"
    file.write_text(json.dumps(DOCUMENT))
    return file


def run(*arguments: str, fails: bool = False) -> str:
    result = CliRunner().invoke(catalog, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert (result.exit_code != 0) == fails, result.output
    return result.output


def test_an_import_prints_a_line_for_every_entry_at_fault_and_counts(file: Path) -> None:
    printed = run("import", str(file))
    assert f"not taken over {file}: broken: image: Input should be a valid string. Correct the entry" in printed
    assert f"not run {file}: acmecluster: hostPaths: /root/.kube:/kube is a path of the host" in printed
    assert "2 servers, 1 of them can be run, 1 are refused when used; 1 were not taken over." in printed


def test_what_was_imported_is_listed_searched_and_shown(file: Path) -> None:
    run("import", str(file), "--name", "ours")
    assert "acmecluster" in run("list")
    assert "acmeboard" in run("search", "quibb")
    shown = json.loads(run("show", "acmecluster"))
    assert (shown["source"], shown["origin"], shown["state"]) == ("ours", str(file), "refused")
    assert "ours" in run("list-sources")


def test_what_is_not_there_is_answered_with_what_is_near(file: Path) -> None:
    run("import", str(file))
    assert "Nothing matches" in run("search", "zzzz", fails=True)
    with pytest.raises(NotFound, match="Nearest: acmeboard"):
        run("show", "acmeborad")


def test_a_catalog_is_compared_refreshed_pinned_and_removed(file: Path) -> None:
    run("import", str(file))
    file.write_text(json.dumps({"registry": {"acmecluster": DOCUMENT["registry"]["acmecluster"]}}))
    assert "- acmeboard" in run("diff", "docker")
    assert "is pinned to sha256:" in run("pin", "docker")
    assert "(pinned)" in run("list-sources")
    assert "is not pinned" in run("pin", "docker", "--off")
    assert "- acmeboard" in run("refresh", "docker")
    assert "docker is removed" in run("remove", "docker")
    assert "acmecluster" not in run("list")


def test_an_import_that_replaces_a_catalog_says_what_is_gone(file: Path) -> None:
    run("import", str(file), "--name", "ours")
    file.write_text(json.dumps({"registry": {"acmeother": {"title": "O", "image": "mcp/other"}}}))
    printed = run("import", str(file), "--name", "ours")
    assert "+ acmeother" in printed
    assert "- acmeboard" in printed
    assert "- acmecluster" in printed
