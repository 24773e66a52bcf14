"""Docker's catalog files as definitions: nothing lost, what is not run refused at use, bad entries passed over."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from app.catalog import (
    CatalogError,
    ContainerToolsRun,
    ImageRun,
    OptionError,
    RemoteRun,
    ServerDefinition,
    objections_of,
    render,
)
from app.catalog.formats import ReadCatalog, Refusal, read_document
from app.catalog.objections import notes_of


def read(registry: dict[str, Any]) -> ReadCatalog:
    document = {"version": 3, "name": "test", "displayName": "Our own", "registry": registry}
    return read_document(json.dumps(document).encode(), origin="catalog.yaml")


def only(tile: str | dict[str, Any], name: str = "acme") -> ServerDefinition:
    catalog = read({name: yaml.safe_load(tile) if isinstance(tile, str) else tile})
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
        ({"image": "a", "user": "$K", "secrets": [{"name": "a.k", "env": "K"}]}, "user", "would expose"),
        ({"image": "a", "env": [{"name": "A", "value": "{{other.x}}"}]}, "env", "does not start with"),
        ({"image": "a", "env": [{"name": "1", "value": ""}]}, "env.0.name", "should match pattern"),
        ({"type": "poci", "tools": [{"name": "t"}]}, "tools.0.container.image", "Field required"),
        ({"type": "poci"}, "tools", "a definition of type poci has tools"),
    ],
)  # fmt: skip
def test_what_is_no_server_is_refused_with_the_reason(tile: dict[str, Any], field: str, reason: str) -> None:
    refused = reasons({"title": "A", **tile})
    assert [refusal.field for refusal in refused] == [field]
    assert reason in refused[0].reason


HOST = {"title": "A", "image": "a", "config": [{"properties": {"dirs": {"type": "array"}, "dir": {"type": "string"}}}]}


@pytest.mark.parametrize(
    ("tile", "field", "reason"),
    [
        ({"volumes": ["{{acme.dir}}:/data"]}, "hostPaths", "{{acme.dir}}:/data is a path of the host"),
        ({"volumes": ["{{acme.dirs|volume|into}}"]}, "hostPaths", "{{acme.dirs|volume|into}} is a path of the host"),
        ({"volumes": ["/etc:/etc"]}, "hostPaths", "/etc:/etc is a path of the host"),
        ({"volumes": ["~/x:/x"]}, "hostPaths", "is a path of the host"),
        ({"volumes": ["C:\\x:/x"]}, "hostPaths", "is a path of the host"),
        ({"volumes": ["/var/run/docker.sock:/s"]}, "hostPaths", "would hand over the container engine"),
        ({"privileged": True}, "hostAccess", "privileged asks for access to the host"),
        ({"extraHosts": ["h:host-gateway"]}, "hostAccess", "extraHosts asks for access to the host"),
        ({"command": ["-t", "$K"], "secrets": [{"name": "a.k", "env": "K"}]}, "command", "credential in $K"),
    ],
)
def test_what_reaches_for_the_host_is_in_the_catalog_and_refused_at_use(
    tile: dict[str, Any], field: str, reason: str
) -> None:
    definition = only({**HOST, **tile})
    (objection,) = objections_of(definition)
    assert objection.field == field
    assert reason in objection.reason
    with pytest.raises(OptionError, match="is in the catalog and is not run") as caught:
        render(definition, "acme", {})
    assert objection.reason in str(caught.value)


def test_a_named_volume_beside_a_path_of_the_host_is_kept_apart() -> None:
    definition = only({**HOST, "volumes": ["data:/data", "{{acme.dir}}:/in", "/x:/x:ro"]})
    assert (definition.volumes, definition.host_paths) == (("data:/data",), ("{{acme.dir}}:/in", "/x:/x:ro"))


def test_a_tool_that_is_a_container_keeps_its_input_schema() -> None:
    schema = {"type": "object", "properties": {"args": {"type": "array", "items": {"type": "string"}}}}
    container = {"image": "curl", "command": ["{{args|into}}"], "volumes": ["{{basedir}}:{{basedir}}"]}
    tile = {"title": "Curl", "type": "poci", "tools": [{"name": "curl", "parameters": schema, "container": container}]}
    definition = only(tile, "curl")
    written = definition.tools[0].model_dump(exclude_defaults=True, mode="json")
    assert written == {"name": "curl", "parameters": schema, "container": container}
    assert render(definition, "curl", {}).run == ContainerToolsRun(tools=definition.tools, env={})


def test_a_template_that_names_nothing_comes_out_empty_and_a_note_says_so() -> None:
    definition = only({"title": "A", "image": "a", "env": [{"name": "a.b", "value": "{{acme.typo}}"}]})
    assert notes_of(definition) == ("env: {{acme.typo}} names none of its settings, so it is always empty.",)
    run = render(definition, "acme", {}).run
    assert isinstance(run, ImageRun)
    assert run.env == {}


def test_a_required_name_that_is_no_setting_is_told_of() -> None:
    schema = {"properties": {"url": {"type": "string"}}, "required": ["url", "key", "typo"]}
    definition = only({"title": "A", "image": "a", "config": [schema], "secrets": [{"name": "acme.key", "env": "KEY"}]})
    assert notes_of(definition) == ("config: typo is required and names no setting, so it is not asked for.",)


def test_a_remote_cannot_let_itself_into_the_network_of_the_operator() -> None:
    remote = {"url": "https://a.example/mcp", "transport_type": "sse", "allowPrivate": True}
    assert [refusal.field for refusal in reasons({"title": "A", "remote": remote})] == ["remote.allowPrivate"]


def test_a_remote_that_signs_in_with_oauth_says_that_this_is_missing() -> None:
    provider = {"provider": "acme", "secret": "acme.token", "env": "TOKEN"}
    remote = {"url": "https://a.example/mcp", "transport_type": "sse"}
    definition = only({"title": "A", "type": "remote", "remote": remote, "oauth": {"providers": [provider]}})
    assert [note.split(":")[0] for note in notes_of(definition)] == ["oauth"]


def test_a_schema_that_contains_itself_is_an_error() -> None:
    text = b"registry: {acme: {image: a, config: [&again {type: object, properties: {again: *again}}]}}"
    with pytest.raises(CatalogError, match="nests them more than 100 deep"):
        read_document(text, origin="catalog.yaml")


def test_a_schema_that_nests_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(20):
        schema = {"type": "object", "properties": {"again": schema}}
    assert [str(refusal) for refusal in reasons({"image": "a", "config": [schema]})] == [
        "acme: config: nests more than 16 objects"
    ]


def test_the_catalog_keeps_its_title() -> None:
    assert read({}) == ReadCatalog("docker-catalog", "Our own", (), ())


def test_a_catalog_artifact_is_read_from_its_snapshots() -> None:
    document = {
        "title": "Pulled",
        "servers": [{"type": "image", "snapshot": {"server": {"name": "acme", "image": "a"}}}],
    }
    catalog = read_document(json.dumps(document).encode(), origin="artifact.json")
    assert (catalog.title, [definition.image for definition in catalog.definitions]) == ("Pulled", ["a"])
