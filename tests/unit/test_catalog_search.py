"""Search over the catalog: what is found, and what comes first."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.catalog import Catalog, ServerDefinition
from app.catalog.merging import ImportedCatalog
from app.catalog.search import Tool


def server(name: str, title: str, description: str = "", **fields: Any) -> ServerDefinition:
    manifest = {"name": name, "title": title, "description": description, "type": "server", "image": "x", **fields}
    return ServerDefinition.imported(manifest)


SERVERS = (
    server("github-official", "GitHub Official", "Issues, pull requests and code.", category="devops", tags=["git"]),
    server("gitlab", "GitLab", "Like a forge such as GitHub, with pipelines."),
    server("weather", "Wetter für München", "Forecasts."),
    server("files", "Files", annotations={"tools": [{"name": "read_text_file", "description": "Reads a document."}]}),
)


@pytest.fixture
def catalog() -> Catalog:
    catalog = Catalog([])
    catalog.adopt([ImportedCatalog("test", "test", False, SERVERS)])
    return catalog


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("github", ["githubOfficial", "gitlab"]),
        ("GitHub", ["githubOfficial", "gitlab"]),
        ("githubOfficial", ["githubOfficial"]),
        ("git off", ["githubOfficial"]),
        ("pull requests", ["githubOfficial"]),
        ("devops", ["githubOfficial"]),
        ("munchen", ["weather"]),
        ("text file", ["files"]),
        ("document", ["files"]),
        ("pullRequests", ["githubOfficial"]),
        ("zzz", []),
        ("", []),
        ('" * ( forecasts : )', ["weather"]),
        ("-- ; '", []),
    ],
)
def test_what_a_query_finds_the_best_first(catalog: Catalog, query: str, found: list[str]) -> None:
    assert [definition.key for definition in catalog.search(query)] == found


def test_a_query_that_nothing_has_all_words_of_finds_what_has_some(catalog: Catalog) -> None:
    assert {definition.key for definition in catalog.search("forecasts pipelines")} == {"gitlab", "weather"}


def test_remembered_tools_are_found_before_and_after_the_index_is_made(catalog: Catalog) -> None:
    catalog.remember_tools("gitlab", [Tool("merge_branch", "Joins two lines of work.")])
    assert [definition.key for definition in catalog.search("merge branch")] == ["gitlab"]
    catalog.remember_tools("weather", [Tool("rain_radar")])
    assert [definition.key for definition in catalog.search("radar")] == ["weather"]
    catalog.remember_tools("gitlab", [])
    assert catalog.search("merge_branch") == []


def test_remembered_tools_outlive_a_change_of_the_imported_catalogs(catalog: Catalog) -> None:
    catalog.remember_tools("gitlab", [Tool("merge_branch")])
    catalog.search("x")
    catalog.adopt([ImportedCatalog("test", "test", False, SERVERS[1:2])])
    assert [definition.key for definition in catalog.search("merge")] == ["gitlab"]
    assert catalog.search("github-official forecasts") == catalog.search("github")


def test_several_near_keys_are_offered_for_an_unknown_one(catalog: Catalog) -> None:
    assert catalog.nearest_few("gitlap") == ["gitlab"]
    assert set(catalog.nearest_few("githab")) >= {"gitlab"}
    assert catalog.nearest_few("zzzzzz") == []


def test_searches_go_on_while_tools_are_learned(catalog: Catalog) -> None:
    learned = threading.Event()

    def learn() -> None:
        for number in range(20_000):
            catalog.remember_tools(f"server{number}", [Tool("anything")])
        learned.set()

    with ThreadPoolExecutor(1) as pool:
        learning = pool.submit(learn)
        while not learned.is_set():
            catalog.adopt([ImportedCatalog("test", "test", False, SERVERS)])  # the next search makes the index anew
            assert [definition.key for definition in catalog.search("weather")] == ["weather"]
        learning.result()
