"""The servers that are shipped, the published schema, and what the public catalog shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from app.catalog import Catalog, PackageRun, describe, render
from app.catalog.catalog import parse_manifest
from app.catalog.schema import manifest_schema

ROOT = Path(__file__).resolve().parents[2] / "catalog"
IMAGES = ROOT.parent / "sandbox_images" / "servers"
FILES = sorted((ROOT / "servers").glob("*.yaml"))


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load(ROOT / "servers")


def test_the_first_servers_are_shipped(catalog: Catalog) -> None:
    assert {d.key for d in catalog} >= {
        "everything", "fetch", "filesystem", "git", "memory", "sequentialthinking", "sqlite", "time",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "command", "placement"),
    [
        ("time", ("/opt/mcp/time/bin/mcp-server-time", "--local-timezone=UTC"), "gateway"),
        ("fetch", ("/opt/mcp/fetch/bin/mcp-server-fetch",), "gateway"),
        ("git", ("/opt/mcp/git/bin/mcp-server-git",), "workspace"),
        ("SQLite", ("/opt/mcp/sqlite/bin/mcp-server-sqlite", "--db-path", "/home/user/sqlite.db"), "workspace"),
        ("filesystem", ("/opt/mcp/filesystem/node_modules/.bin/mcp-server-filesystem", "/home/user"), "workspace"),
        ("memory", ("/opt/mcp/memory/node_modules/.bin/mcp-server-memory",), "gateway"),
    ],
)
def test_a_shipped_server_runs_without_any_option(
    catalog: Catalog, key: str, command: tuple[str, ...], placement: str
) -> None:
    definition = catalog.find(key)
    assert definition is not None
    run = render(definition, key, {}).run
    assert isinstance(run, PackageRun)
    assert (run.command, run.placement) == (command, placement)


def test_every_shipped_package_is_the_version_that_the_images_hold(catalog: Catalog) -> None:
    named = {
        d.command[0].split("/")[3]: d.package for d in catalog if d.package and d.command[0].startswith("/opt/mcp/")
    }
    assert len(named) == sum(definition.package is not None for definition in catalog)
    for directory, package in named.items():
        if package.registry == "npm":
            held = json.loads((IMAGES / "npm" / directory / "package.json").read_text())["dependencies"]
            assert held == {package.name: package.version}
        else:
            lines = (IMAGES / "pypi" / f"{directory}.in").read_text().splitlines()
            held = {line for line in lines if line and not line.startswith("#")}
            assert held == {f"{package.name}=={package.version}", *package.constraints}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_shipped_manifest_obeys_the_published_schema(file: Path) -> None:
    Draft202012Validator(json.loads((ROOT / "schema.json").read_text())).validate(yaml.safe_load(file.read_text()))


def test_the_published_schema_is_that_of_the_code() -> None:
    assert (ROOT / "schema.json").read_text() == manifest_schema(), (
        "run: python -m app.catalog.schema > catalog/schema.json"
    )


def test_the_schema_is_valid_json_schema_and_closed_to_unknown_names() -> None:
    schema = json.loads(manifest_schema())
    Draft202012Validator.check_schema(schema)
    objects = [schema, *schema["$defs"].values()]
    assert all(item["additionalProperties"] is False for item in objects if item.get("type") == "object")


def test_the_public_catalog_shows_properties_by_the_names_of_the_sdk() -> None:
    definition = parse_manifest(
        """
        name: acme-mcp
        title: Acme
        description: Does things.
        type: server
        package: {registry: pypi, name: acme-mcp, version: 1.2.3}
        command: [acme, "{{acme-mcp.site.url}}"]
        category: devops
        homepage: https://acme.example
        secrets:
          - {name: acme-mcp.token, env: ACME_TOKEN, description: A token., obtainAt: https://acme.example/tokens}
          - {name: acme-mcp.extra, env: EXTRA, required: false}
        config:
          properties:
            site:
              type: object
              properties:
                url: {type: string, description: Where.}
                path: {type: string, default: "{{sandbox.home}}/x"}
              required: [url]
            loose: {type: object, properties: {inner: {type: integer}}, required: [inner]}
          required: [site]
        """,
        origin="test.yaml",
    )
    assert describe(definition) == {
        "key": "acme",
        "name": "acme-mcp",
        "title": "Acme",
        "description": "Does things.",
        "type": "server",
        "placement": "gateway",
        "properties": {
            "acmeToken": {
                "type": "string", "description": "A token.", "secret": True, "obtainAt": "https://acme.example/tokens",
            },
            "extra": {"type": "string", "description": "", "secret": True},
            "siteUrl": {"type": "string", "description": "Where."},
            "sitePath": {"type": "string", "description": "", "default": "/var/lib/mcp/acme/x"},
            "looseInner": {"type": "integer", "description": ""},
        },
        "required": ["acmeToken", "siteUrl"],
        "homepage": "https://acme.example",
        "category": "devops",
        "verified": False,
        "state": "available",
        "reasons": [],
        "notes": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "placement"),
    [
        ("type: server\nimage: example/x", "container"),
        ('type: remote\nremote: {url: "https://x.example/mcp", transport_type: sse}', "gateway"),
    ],
)
def test_the_public_catalog_says_where_a_server_runs(kind: str, placement: str) -> None:
    definition = parse_manifest(f"name: x\ntitle: X\n{kind}\n", origin="test.yaml")
    assert describe(definition)["placement"] == placement
