"""The servers that are shipped, the published schema, and what the public catalog shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema_rs import Draft202012Validator, meta

from app.catalog import Catalog, PackageRun, describe, render
from app.catalog.catalog import parse_manifest
from app.catalog.schema import manifest_schema

ROOT = Path(__file__).resolve().parents[2] / "catalog"
FILES = sorted((ROOT / "servers").glob("*.yaml"))


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load(ROOT / "servers")


def test_the_first_servers_are_shipped(catalog: Catalog) -> None:
    assert {d.key for d in catalog} >= {
        "everything", "fetch", "filesystem", "git", "memory", "sequentialthinking", "sqlite", "time",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "program", "arguments", "placement"),
    [
        ("time", "mcp-server-time", ("--local-timezone=UTC",), "gateway"),
        ("fetch", "mcp-server-fetch", (), "gateway"),
        ("git", "mcp-server-git", (), "workspace"),
        ("SQLite", "mcp-server-sqlite", ("--db-path", "/home/user/sqlite.db"), "workspace"),
        ("filesystem", "mcp-server-filesystem", ("/home/user",), "workspace"),
        ("memory", "mcp-server-memory", (), "gateway"),
    ],
)
def test_a_shipped_server_runs_without_any_option(
    catalog: Catalog, key: str, program: str, arguments: tuple[str, ...], placement: str
) -> None:
    definition = catalog.find(key)
    assert definition is not None
    assert definition.package is not None
    run = render(definition, key, {}).run
    assert isinstance(run, PackageRun)
    assert run.command == (f"{definition.package.directory}/bin/{program}", *arguments)
    assert run.placement == placement


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_shipped_manifest_obeys_the_published_schema(file: Path) -> None:
    Draft202012Validator(json.loads((ROOT / "schema.json").read_text())).validate(yaml.safe_load(file.read_text()))


def test_the_published_schema_is_that_of_the_code() -> None:
    assert (ROOT / "schema.json").read_text() == manifest_schema(), (
        "run: python -m app.catalog.schema > catalog/schema.json"
    )


def test_the_schema_is_valid_json_schema_and_closed_to_unknown_names() -> None:
    schema = json.loads(manifest_schema())
    meta.validate(schema)
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
