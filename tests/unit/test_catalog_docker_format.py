"""Docker's catalog files as definitions: nothing lost, bad entries reported and passed over."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from app.catalog import CatalogError, ImageRun, RemoteRun, render
from app.catalog.docker_format import DockerCatalog, Refusal, read_docker_catalog


def read(registry: dict[str, Any]) -> DockerCatalog:
    return read_docker_catalog({"version": 3, "name": "test", "registry": registry}, origin="catalog.yaml")


def only(tile: str, name: str = "acme") -> Any:
    catalog = read({name: yaml.safe_load(tile)})
    assert catalog.refused == ()
    return catalog.definitions[0]


def reasons(tile: dict[str, Any]) -> tuple[Refusal, ...]:
    return read({"acme": tile}).refused


TILE = """
title: Acme
description: Does things.
type: server
image: mcp/acme@sha256:abc
upstream: https://git.example/acme
source: https://git.example/acme/tree/abc
icon: https://acme.example/icon.png
readme: https://acme.example/readme.md
command: [--transport=stdio, "--level={{acme.access_level}}"]
user: "{{acme.user}}"
volumes: [acme-data:/data]
allowHosts: [api.acme.example:443]
longLived: true
disableNetwork: true
dynamic: {tools: true}
secrets: [{name: acme.api_key, env: ACME_API_KEY, example: <KEY>, required: true, description: A key.}]
env: [{name: ACME_URL, value: "{{acme.server.url}}"}, {name: MODE, value: stdio}]
config:
  - name: acme
    description: How to reach Acme
    type: object
    properties:
      access_level: {type: string}
      user: {type: string}
      server: {type: object, properties: {url: {type: string}, port: {type: integer}}, required: [url]}
    required: [server]
x-defaults: {access_level: readonly, server.url: "http://localhost:1", server.port: 80}
oauth: {providers: [{provider: acme, secret: acme.api_key, env: ACME_API_KEY}], scopes: [read]}
metadata: {category: devops, tags: [acme, tickets], license: MIT, owner: acme, pulls: 12}
tools: [{name: look}]
"""


def test_every_field_of_a_tile_is_in_the_definition() -> None:
    written = only(TILE).model_dump(by_alias=True, exclude_defaults=True, mode="json")
    assert written == {
        "name": "acme",
        "title": "Acme",
        "description": "Does things.",
        "type": "server",
        "image": "mcp/acme@sha256:abc",
        "command": ["--transport=stdio", "--level={{acme.access_level}}"],
        "user": "{{acme.user}}",
        "volumes": ["acme-data:/data"],
        "allowHosts": ["api.acme.example:443"],
        "longLived": True,
        "disableNetwork": True,
        "dynamic": {"tools": True},
        "secrets": [{"name": "acme.api_key", "env": "ACME_API_KEY", "example": "<KEY>", "description": "A key."}],
        "env": [{"name": "ACME_URL", "value": "{{acme.server.url}}"}, {"name": "MODE", "value": "stdio"}],
        "config": {
            "description": "How to reach Acme",
            "properties": {
                "access_level": {"type": "string", "default": "readonly"},
                "user": {"type": "string"},
                "server": {
                    "type": "object",
                    "properties": {
                        "url": {"type": "string", "example": "http://localhost:1"},
                        "port": {"type": "integer", "default": 80},
                    },
                    "required": ["url"],
                },
            },
            "required": ["server"],
        },
        "oauth": {
            "providers": [{"provider": "acme", "secret": "acme.api_key", "env": "ACME_API_KEY"}],
            "scopes": ["read"],
        },
        "category": "devops",
        "tags": ["acme", "tickets"],
        "license": "MIT",
        "homepage": "https://git.example/acme",
        "annotations": {
            "source": "https://git.example/acme/tree/abc",
            "icon": "https://acme.example/icon.png",
            "readme": "https://acme.example/readme.md",
            "tools": [{"name": "look"}],
            "metadata": {"owner": "acme", "pulls": 12},
        },
    }  # fmt: skip


def test_an_imported_server_renders_like_any_other() -> None:
    run = render(only(TILE), "acme", {"apiKey": "k", "serverUrl": "https://acme", "user": "1000"}).run
    assert isinstance(run, ImageRun)
    assert run.command == ("--transport=stdio", "--level=readonly")
    assert run.env == {"ACME_API_KEY": "k", "ACME_URL": "https://acme", "MODE": "stdio"}
    assert run.user == "1000"


@pytest.mark.parametrize(
    ("endpoint", "transport"),
    [
        ('remote: {url: "https://a.example/mcp", transport_type: http}', "streamable-http"),
        ('remote: {url: "https://a.example/mcp", transport_type: streaming}', "streamable-http"),
        ('remote: {url: "https://a.example/mcp", transport_type: sse}', "sse"),
        ('sseEndpoint: "https://a.example/mcp"', "sse"),
    ],
)
def test_a_remote_tile_keeps_its_endpoint(endpoint: str, transport: str) -> None:
    run = render(only(f"title: A\ntype: remote\n{endpoint}"), "acme", {}).run
    assert run == RemoteRun(url="https://a.example/mcp", headers={}, transport_type=transport)


def test_what_a_header_needs_comes_from_the_credentials() -> None:
    definition = only("""
        title: A
        type: remote
        remote: {url: "https://a.example", transport_type: sse, headers: {Authorization: "Bearer ${ACME_KEY}"}}
        secrets: [{name: acme.key, env: ACME_KEY, required: false}]
    """)
    run = render(definition, "acme", {"key": "k"}).run
    assert isinstance(run, RemoteRun)
    assert run.headers == {"Authorization": "Bearer k"}


@pytest.mark.parametrize(
    ("config", "stated", "required"),
    [
        ({}, {}, True),
        ({"required": ["url"]}, {}, False),
        ({"required": ["url"]}, {"required": True}, True),
        ({}, {"required": False}, False),
        ({"required": ["url", "key"]}, {"required": False}, True),
    ],
)
def test_whether_a_credential_is_required(config: dict[str, Any], stated: dict[str, Any], required: bool) -> None:
    schema = {"name": "acme", "type": "object", "properties": {"url": {"type": "string"}}, **config}
    secret = {"name": "acme.key", "env": "KEY", **stated}
    catalog = read({"acme": {"title": "A", "image": "a", "secrets": [secret], "config": [schema]}})
    assert [secret.required for secret in catalog.definitions[0].secrets] == [required]


def test_a_bad_entry_is_reported_and_the_others_are_read() -> None:
    catalog = read(
        {"bad": {"title": 7, "image": "a", "user": 5}, "worse": "text", "good": {"title": "G", "image": "g"}}
    )
    assert [definition.name for definition in catalog.definitions] == ["good"]
    assert [str(refusal) for refusal in catalog.refused] == [
        "bad: title: Input should be a valid string",
        "bad: user: Input should be a valid string",
        "worse: expected an object",
    ]


@pytest.mark.parametrize(
    ("tile", "field", "reason"),
    [
        ({"image": "a", "volumes": ["{{acme.dir}}:/data"]}, "volumes", "{{acme.dir}}:/data is a path of the host"),
        ({"image": "a", "volumes": ["{{acme.dirs|volume|into}}"]}, "volumes", "is a path of the host"),
        ({"image": "a", "volumes": ["/etc:/etc"]}, "volumes", "/etc:/etc is a path of the host"),
        ({"image": "a", "volumes": ["~/x:/x"]}, "volumes", "is a path of the host"),
        ({"image": "a", "volumes": ["C:\\x:/x"]}, "volumes", "is a path of the host"),
        ({"image": "a", "volumes": ["/var/run/docker.sock:/s"]}, "volumes", "hand over the container engine"),
        ({"image": "a", "privileged": True}, "privileged", "access to the host"),
        ({"image": "a", "extraHosts": ["h:host-gateway"]}, "extraHosts", "access to the host"),
        ({"type": "poci", "tools": [{"name": "t"}]}, "type", "one container per tool call"),
        ({"remote": {"url": "https://x", "transport_type": "stdio"}}, "remote.transport_type", "'stdio' is none of"),
        ({"remote": {"url": "https://x", "transport_type": []}}, "remote.transport_type", "'[]' is none of"),
        ({"image": "a", "config": [{"required": [["x"]]}]}, "config.required.0", "valid string"),
        ({"image": "a", "config": [{}, {}]}, "config", "one JSON schema"),
        ({"image": "a", "config": {"type": "object"}}, "config", "expected a list"),
        ({"image": "a", "config": [{"properties": []}]}, "config.properties", "valid dictionary"),
        ({"image": "a", "config": [{"properties": ["x"]}]}, "properties", "expected an object"),
        ({"image": "a", "x-defaults": {"a.b": 1}, "config": [{}]}, "config", "one JSON schema"),
        ({"image": "a", "x-defaults": {"a.b": 1}, "config": [{"type": "object"}]}, "x-defaults", "a.b is not in"),
        ({"image": "a", "secrets": 5}, "secrets", "expected a list"),
        ({"image": "a", "metadata": "x"}, "metadata", "expected an object"),
        ({"image": "a", "command": ["$K"], "secrets": [{"name": "a.k", "env": "K"}]}, "command", "would expose"),
        ({"image": "a", "env": [{"name": "A", "value": "{{acme.typo}}"}]}, "env", "{{acme.typo}} names nothing"),
        ({"image": "a", "env": [{"name": "a.b", "value": ""}]}, "env.0.name", "should match pattern"),
    ],
)  # fmt: skip
def test_what_cannot_or_should_not_run_is_refused_with_the_reason(
    tile: dict[str, Any], field: str, reason: str
) -> None:
    refused = reasons({"title": "A", **tile})
    assert [refusal.field for refusal in refused] == [field]
    assert reason in refused[0].reason


def test_a_schema_that_contains_itself_is_refused() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    schema["properties"]["again"] = schema
    assert [str(refusal) for refusal in reasons({"image": "a", "config": [schema]})] == [
        "acme: config: nests more than 16 objects"
    ]


@pytest.mark.parametrize("document", [None, [], "text", {}, {"registry": []}])
def test_a_document_that_is_no_catalog_is_an_error(document: object) -> None:
    with pytest.raises(CatalogError, match=r"catalog\.yaml: registry: expected an object"):
        read_docker_catalog(document, origin="catalog.yaml")


def test_the_catalog_keeps_its_name_and_title() -> None:
    catalog = read_docker_catalog({"name": "own", "displayName": "Our own", "registry": {}}, origin="catalog.yaml")
    assert catalog == DockerCatalog("own", "Our own", (), ())
