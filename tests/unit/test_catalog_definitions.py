"""What makes a manifest unusable. Each case changes one thing in a good one."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from app.catalog import CatalogError, ServerDefinition
from app.catalog.catalog import parse_manifest

GOOD: dict[str, Any] = {
    "name": "acme-mcp",
    "title": "Acme",
    "type": "server",
    "package": {"registry": "pypi", "name": "acme-mcp", "version": "1.2.3"},
    "command": ["/opt/mcp/acme/bin/acme-mcp", "--url={{acme-mcp.site.url}}"],
    "env": [{"name": "ACME_HEADER", "value": "Bearer $ACME_TOKEN"}],
    "secrets": [{"name": "acme-mcp.token", "env": "ACME_TOKEN"}],
    "config": {"properties": {"site": {"type": "object", "properties": {"url": {"type": "string"}}}}},
}
IMAGE: dict[str, Any] = {"package": None, "image": "example/acme:1"}
REMOTE: dict[str, Any] = {
    "type": "remote",
    "package": None,
    "command": [],
    "remote": {"url": "https://acme.example/mcp", "transport_type": "streamable-http"},
}


def manifest(**changes: Any) -> ServerDefinition:
    document = {name: value for name, value in (GOOD | changes).items() if value is not None}
    return parse_manifest(yaml.safe_dump(document), origin="acme.yaml")


def test_a_good_manifest_is_read_with_its_defaults() -> None:
    definition = manifest()
    assert (definition.key, definition.placement, definition.verified) == ("acme", "gateway", False)
    assert definition.secrets[0].required


def test_a_stated_key_wins_over_the_rule() -> None:
    assert manifest(key="acmeTwo").key == "acmeTwo"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "has space"}, "name: String should match pattern"),
        ({"name": "mcp-", "command": ["x"]}, "name: leaves nothing for a key"),
        ({"aliases": ["github/acme/tool"]}, "aliases.0: String should match pattern"),
        ({"titel": "Acme"}, "titel: Extra inputs are not permitted"),
        ({"start_timeout_s": 5.0}, "start_timeout_s: Extra inputs are not permitted"),
        ({"title": None}, "title: Field required"),
        ({"package": {"registry": "pypi", "name": "a", "version": 1.0}}, "package.version: Input should be a valid"),
        ({"secrets": [{"name": "a", "env": "1X"}]}, "secrets.0.env: String should match pattern"),
        ({"config": {"properties": {"a": {"type": "text"}}}}, "config.properties.a.type"),
        ({"package": None}, "type: a definition of type server has exactly one of: image, package"),
        ({"image": "example/acme:1"}, "type: a definition of type server has exactly one of: image, package"),
        ({"type": "remote"}, "type: a definition of type remote has exactly one of: remote"),
        ({"command": []}, "command: a package server needs its command"),
        ({**REMOTE, "command": ["x"]}, "command: a remote server has no command"),
        ({**REMOTE, "cwd": "/"}, "cwd: only a package server"),
        ({"volumes": ["data:/data"]}, "volumes: only an image server"),
        ({**IMAGE, "volumes": ["/etc:/data"]}, "volumes.0: String should match pattern"),
        ({**IMAGE, "volumes": ["{{acme-mcp.site.url}}:/data"]}, "volumes.0: String should match pattern"),
        ({**IMAGE, "volumes": ["data:/data:ro"]}, "volumes.0: String should match pattern"),
        ({**IMAGE, "operatorVolumes": ["/etc:/data"]}, "operatorVolumes.0: String should match pattern"),
        ({"operatorVolumes": ["data:/data"]}, "operatorVolumes: only an image server"),
        ({"disableNetwork": True}, "disableNetwork: only an image server"),
        ({**IMAGE, "placement": "workspace"}, "placement: only a package server"),
        ({"placement": "workspace"}, "placement: a server with credentials stays out of the workspace"),
        ({"name": "sandbox", "command": ["x"]}, "name: sandbox is reserved"),
        ({"env": [{"name": "ACME_TOKEN", "value": "x"}]}, "env: ACME_TOKEN is defined twice"),
        ({"config": {"properties": {"acme_token": {"type": "string"}}}}, "config: acmeToken is defined twice"),
        ({"config": {"required": ["site"]}, "command": ["x"]}, "config: site is required and is no property"),
        ({"config": {"anyOf": [{"required": ["a"]}]}, "command": ["x"]}, "config: a is required and is no property"),
        ({"config": {"properties": {"a": {"type": "integer", "default": "5"}}}}, "config.a: the default is no integer"),
        ({"config": {"properties": {"a": {"type": "string", "pattern": "("}}}}, "config.a: the pattern is no regular"),
        ({"command": ["x", "{{other.url}}"]}, "command: {{other.url}} does not start with the server's name, acme-mcp"),
        ({"command": ["x", "{{acme-mcp.site.uri}}"]}, "command: {{acme-mcp.site.uri}} names nothing in config"),
        ({"command": ["x", "{{sandbox.user}}"]}, "command: {{sandbox.user}}: only {{sandbox.home}} is known"),
        ({"command": ["x", "{{acme-mcp.site.url|trim}}"]}, "command: {{acme-mcp.site.url|trim}} calls 'trim'"),
        ({"command": ["x", "$HOME"]}, "command: $HOME is no credential of this server and no variable set before"),
        ({"env": [{"name": "A", "value": "$B"}, {"name": "B", "value": "b"}]}, "env: $B is no credential"),
    ],
)  # fmt: skip
def test_a_bad_manifest_is_refused_by_file_entry_and_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogError) as caught:
        manifest(**changes)
    name = changes.get("name", "acme-mcp")
    assert any(problem.startswith(f"acme.yaml: {name}: {message}") for problem in caught.value.problems), caught.value


@pytest.mark.parametrize(
    "changes",
    [
        {"command": ["acme", "--auth-token", "$ACME_TOKEN"]},
        {"command": ["acme", "--header=${ACME_HEADER}"]},
        {"cwd": "/data/$ACME_TOKEN"},
        {**IMAGE, "user": "$ACME_TOKEN"},
        {**REMOTE, "remote": {"url": "https://acme.example/mcp?key=$ACME_TOKEN", "transport_type": "sse"}},
    ],
)
def test_a_credential_can_go_into_the_environment_and_headers_only(changes: dict[str, Any]) -> None:
    with pytest.raises(CatalogError, match="would expose the credential in \\$ACME_"):
        manifest(**changes)


def test_a_variable_without_a_credential_may_be_used_in_a_command() -> None:
    definition = manifest(env=[{"name": "MODE", "value": "fast"}], command=["acme", "--mode=$MODE"])
    assert definition.command[1] == "--mode=$MODE"


def test_every_problem_of_a_file_is_reported_at_once() -> None:
    with pytest.raises(CatalogError) as caught:
        manifest(title=7, type="client")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "found 'name' twice"),
        ("- just\n- a list\n", "acme.yaml: (no name): Input should be"),
        ("name: [", "acme.yaml: "),
        ("!!python/object/apply:os.system [id]", "could not determine a constructor"),
    ],
)
def test_text_that_is_no_manifest_is_refused(text: str, message: str) -> None:
    with pytest.raises(CatalogError) as caught:
        parse_manifest(text, origin="acme.yaml")
    assert message in str(caught.value)


def test_an_unquoted_date_stays_text() -> None:
    package = {"registry": "pypi", "name": "acme-mcp", "version": "VERSION"}
    document = yaml.safe_dump(GOOD | {"package": package}).replace("VERSION", "2026-08-31")
    definition = parse_manifest(document, origin="acme.yaml")
    assert definition.package is not None
    assert definition.package.version == "2026-08-31"
