"""Results: kept from run to run, valid for the version they were made of, and told on a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.catalog import Catalog, ServerDefinition
from app.verification import Results, Verification, make_page

CATALOG = Path(__file__).resolve().parents[2] / "catalog"


def server(name: str, **more: Any) -> ServerDefinition:
    package = {"registry": "npm", "name": name, "version": "1.0.0"}
    described = {"name": name, "title": name.title(), "type": "server", "package": package, "command": [name]}
    return ServerDefinition.model_validate(described | more)


def result(definition: ServerDefinition, **more: Any) -> Verification:
    assert definition.package is not None
    seen: dict[str, Any] = {"state": "verified", "digest": definition.package.digest, "tools": 3}
    return Verification(**seen | more)


def test_a_result_is_there_in_the_next_run(tmp_path: Path) -> None:
    acme = server("acme")
    found = result(acme, start_s=1.5, memory_mib=60.0, hosts=("api.acme.example:443",))
    Results(tmp_path / "new" / "results.json").put(acme, found)
    assert Results(tmp_path / "new" / "results.json").of(acme) == found


def test_a_result_of_another_version_counts_as_none(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    results.put(server("acme"), result(server("acme")))
    newer = server("acme", package={"registry": "npm", "name": "acme", "version": "1.0.1"})
    assert results.of(newer) is None


def test_the_page_tells_every_state_with_what_was_seen(tmp_path: Path) -> None:
    works, asks, remote, untried = (
        server("works"),
        server("asks"),
        ServerDefinition.model_validate(
            {
                "name": "remote",
                "title": "Remote",
                "type": "remote",
                "remote": {"url": "https://a.example", "transport_type": "sse"},
            }
        ),
        server("untried"),
    )
    results = Results(tmp_path / "results.json")
    results.put(works, result(works, start_s=1.0, memory_mib=50.2, hosts=("a.example:443",)))
    results.put(
        asks, result(asks, state="needs real credentials", tools=0, message="exited | with code 1\nbecause <so>")
    )
    page = make_page([works, asks, remote, untried], results)
    assert "| `works` | Works | 3 | 1.0 s | 50 MiB | a.example:443 |" in page
    assert "| `asks` | Asks | exited \\| with code 1 because &lt;so> |" in page
    assert "| not tried | 2 |" in page
    assert "| `remote` | Remote | runs elsewhere: its service is needed |" in page
    assert "| `untried` | Untried | this version has not been tried yet |" in page


def test_what_is_shipped_as_verified_was_seen_to_work_in_this_version() -> None:
    results = Results(CATALOG / "verified.json")
    for definition in Catalog.load(CATALOG / "servers"):
        found = results.of(definition)
        assert definition.verified == (found is not None and found.state == "verified"), definition.key


def test_the_page_of_servers_is_that_of_the_results() -> None:
    page = make_page(Catalog.load(CATALOG / "servers"), Results(CATALOG / "verified.json"))
    assert (CATALOG.parent / "docs" / "catalog.md").read_text() == page, (
        "run: sandgate catalog verify --results catalog/verified.json --page docs/catalog.md"
    )
