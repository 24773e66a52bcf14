"""The catalog as a whole: directories in order, keys, aliases, and what they say when they clash."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.catalog import Catalog, CatalogError


def put(directory: Path, name: str, *, file: str | None = None, more: str = "") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / (file or f"{name}.yaml")
    path.write_text(f"name: {name}\ntitle: {name}\ntype: server\nimage: example/{name}\n{more}")
    return path


def test_a_server_is_found_by_key_alias_and_catalog_name(tmp_path: Path) -> None:
    put(tmp_path, "github-official", more="aliases: [gh]")
    catalog = Catalog.load(tmp_path)
    found = [catalog.find(name) for name in ("githubOfficial", "gh", "github-official")]
    assert [definition.name for definition in found if definition] == ["github-official"] * 3
    assert catalog.find("GITHUBOFFICIAL") is None


def test_definitions_come_in_the_order_of_their_keys(tmp_path: Path) -> None:
    for name in ("zeta", "mcp-beta", "SQLite", "alpha"):
        put(tmp_path, name)
    catalog = Catalog.load(tmp_path)
    assert [definition.key for definition in catalog] == ["alpha", "beta", "sqlite", "zeta"]
    assert len(catalog) == 4


def test_a_later_directory_replaces_a_definition_and_its_origin_is_kept(tmp_path: Path) -> None:
    shipped = put(tmp_path / "shipped", "time")
    own = put(tmp_path / "own", "time", more="verified: true")
    entry = Catalog.load(tmp_path / "shipped", tmp_path / "own").entry("time")
    assert entry is not None
    assert (entry.origin, entry.replaces, entry.definition.verified) == (own, shipped, True)


def test_an_absent_later_directory_is_empty_and_an_absent_first_one_an_error(tmp_path: Path) -> None:
    put(tmp_path / "shipped", "time")
    assert len(Catalog.load(tmp_path / "shipped", tmp_path / "absent")) == 1
    with pytest.raises(CatalogError, match="absent: is no directory"):
        Catalog.load(tmp_path / "absent")


def test_a_key_belongs_to_one_server(tmp_path: Path) -> None:
    put(tmp_path, "playwright")
    put(tmp_path, "playwright-mcp-server")
    with pytest.raises(CatalogError, match=r"key: playwright is taken by playwright\S* .*; state another `key`"):
        Catalog.load(tmp_path)


def test_a_key_wins_over_the_catalog_name_of_another_server(tmp_path: Path) -> None:
    put(tmp_path, "playwright", more="key: playwrightMicrosoft")
    put(tmp_path, "playwright-mcp-server")
    catalog = Catalog.load(tmp_path)
    found = catalog.find("playwright"), catalog.find("playwrightMicrosoft")
    assert [definition.name for definition in found if definition] == ["playwright-mcp-server", "playwright"]


def test_two_files_of_one_directory_cannot_define_one_name(tmp_path: Path) -> None:
    put(tmp_path, "time")
    put(tmp_path, "time", file="zime.yaml")
    with pytest.raises(CatalogError, match=r"zime\.yaml: time: name: time\.yaml defines it already"):
        Catalog.load(tmp_path)


def test_all_broken_files_are_reported_together(tmp_path: Path) -> None:
    put(tmp_path, "one", more="colour: red")
    put(tmp_path, "two", more="colour: red")
    with pytest.raises(CatalogError) as caught:
        Catalog.load(tmp_path)
    assert [problem.split(": ")[1:3] for problem in caught.value.problems] == [["one", "colour"], ["two", "colour"]]


def test_a_long_list_of_problems_is_cut_and_says_so(tmp_path: Path) -> None:
    for number in range(25):
        put(tmp_path, f"server{number}", more="colour: red")
    with pytest.raises(CatalogError, match="and 5 more"):
        Catalog.load(tmp_path)


def test_the_nearest_server_is_offered_by_its_key(tmp_path: Path) -> None:
    put(tmp_path, "github-official", more="aliases: [gh]")
    put(tmp_path, "time")
    catalog = Catalog.load(tmp_path)
    assert catalog.nearest("github_oficial") == "githubOfficial"
    assert catalog.nearest("tiem") == "time"
    assert catalog.nearest("invalid_server") is None
