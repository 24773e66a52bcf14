"""Catalogs of others, recognised by their content: what becomes of an entry, and what is never taken over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.catalog import CatalogError, ImageRun, PackageRun, RemoteRun, ServerDefinition, objections_of, render
from app.catalog.formats import ReadCatalog, read_document
from app.catalog.objections import notes_of

CREDENTIAL = "ghp_abcdefgh1234567890"


def read(document: object) -> ReadCatalog:
    return read_document(json.dumps(document).encode(), origin="given.json")


def only(document: object, format: str) -> ServerDefinition:
    catalog = read(document)
    assert [str(refusal) for refusal in catalog.refused] == []
    assert catalog.format == format
    (definition,) = catalog.definitions
    assert CREDENTIAL not in definition.model_dump_json()
    return definition


def refusal(document: object) -> str:
    catalog = read(document)
    assert catalog.definitions == ()
    (only_one,) = catalog.refused
    assert only_one.remedy
    assert CREDENTIAL not in str(only_one)
    return str(only_one)


def client(**server: Any) -> dict[str, Any]:
    return {"mcpServers": {"acme": server}}


# -- Docker's registry and image labels --------------------------------------------------------------------------------

SERVER_YAML = """
name: acme
image: mcp/acme
type: server
longLived: true
meta: {category: devops, tags: [acme]}
about: {title: Acme, description: "Does\\n  things", icon: https://acme.example/i.png}
source: {project: https://git.example/acme, commit: abc, directory: src}
run:
  command: [--transport=stdio]
  volumes: ["{{acme.dir|volume|into}}", "data:/data"]
  env: {MODE: "{{acme.mode}}"}
  allowHosts: [api.acme.example:443]
config:
  description: How to reach Acme
  secrets: [{name: acme.api_key, env: ACME_API_KEY, example: <KEY>}]
  env: [{name: LEVEL, value: "{{acme.level}}"}]
  parameters:
    type: object
    properties:
      dir: {type: string}
      mode: {type: string, default: fast}
      level: {type: string}
    required: [level]
"""


def test_a_server_of_dockers_registry_is_what_its_catalog_makes_of_it() -> None:
    catalog = read_document(SERVER_YAML.encode(), origin="server.yaml")
    assert (catalog.format, catalog.refused) == ("docker-registry-entry", ())
    (definition,) = catalog.definitions
    assert definition.model_dump(by_alias=True, exclude_defaults=True, mode="json") == {
        "name": "acme",
        "title": "Acme",
        "description": "Does things",
        "type": "server",
        "image": "mcp/acme",
        "command": ["--transport=stdio"],
        "env": [{"name": "LEVEL", "value": "{{acme.level}}"}, {"name": "MODE", "value": "{{acme.mode}}"}],
        "secrets": [{"name": "acme.api_key", "env": "ACME_API_KEY", "example": "<KEY>", "required": False}],
        "volumes": ["data:/data"],
        "hostPaths": ["{{acme.dir|volume|into}}"],
        "allowHosts": ["api.acme.example:443"],
        "longLived": True,
        "config": {
            "description": "How to reach Acme",
            "properties": {
                "dir": {"type": "string"},
                "mode": {"type": "string", "default": "fast"},
                "level": {"type": "string"},
            },
            "required": ["level"],
        },
        "category": "devops",
        "tags": ["acme"],
        "homepage": "https://git.example/acme",
        "annotations": {
            "icon": "https://acme.example/i.png",
            "source": "https://git.example/acme/tree/abc/src",
        },
    }


def test_an_image_label_is_read_from_what_docker_inspect_prints() -> None:
    label = "name: acme\ntitle: Acme\nsecrets: [{name: acme.key, env: KEY}]\n"
    image = {
        "Id": "sha256:1",
        "RepoTags": ["example/acme:1"],
        "RepoDigests": ["example/acme@sha256:2"],
        "Config": {"Labels": {"io.docker.server.metadata": label}},
    }
    definition = only([image], "docker-image-label")
    assert (definition.image, [secret.env for secret in definition.secrets]) == ("example/acme@sha256:2", ["KEY"])


def test_a_single_server_of_dockers_catalog_is_read_by_itself() -> None:
    assert only({"name": "acme", "title": "A", "image": "a"}, "docker-server").image == "a"


def test_a_manifest_of_sandgate_is_read_and_counts_as_unverified() -> None:
    package = {"registry": "npm", "name": "acme", "version": "1.0.0"}
    manifest = {"name": "acme", "title": "A", "type": "server", "package": package, "command": ["acme"]}
    definition = only({**manifest, "verified": True}, "sandgate")
    assert (definition.command, definition.verified) == (("acme",), False)


def test_an_imported_definition_cannot_name_volumes_of_the_engine() -> None:
    manifest = {"name": "a", "title": "A", "type": "server", "image": "a", "config": {}, "operatorVolumes": ["x:/x"]}
    assert refusal(manifest) == (
        "a: operatorVolumes: only a definition of the operator's own may name volumes of the container engine"
    )


# -- the MCP registry --------------------------------------------------------------------------------------------------

PACKAGE: dict[str, Any] = {
    "registryType": "npm",
    "identifier": "@acme/mcp",
    "version": "1.2.3",
    "transport": {"type": "stdio"},
    "packageArguments": [
        {"type": "positional", "value": "start"},
        {"type": "named", "name": "--read-only"},
        {"type": "named", "name": "--port", "format": "number", "default": "80"},
        {"type": "named", "name": "--extra", "valueHint": "extra"},
        {"type": "named", "name": "--url", "value": "https://{host}/", "variables": {"host": {"isRequired": True}}},
        {"type": "positional", "valueHint": "dirs", "isRepeated": True},
    ],
    "environmentVariables": [
        {"name": "ACME_TOKEN", "isSecret": True, "isRequired": True, "description": "A token."},
        {"name": "ACME_MODE", "default": "fast", "choices": ["fast", "slow"]},
        {"name": "AUTH", "value": "Bearer {key}", "variables": {"key": {"isSecret": True}}},
    ],
}
SERVER = {"name": "com.example/acme", "description": "Does things.", "version": "1.2.3", "packages": [PACKAGE]}


def test_a_package_of_the_mcp_registry_asks_for_what_its_arguments_need() -> None:
    definition = only(SERVER, "mcp-registry")
    assert (definition.name, definition.title) == ("com.example-acme", "acme")
    run = render(definition, "acme", {"host": "a.example", "dirs": ["/a", "/b"], "acmeToken": "t", "KEY": "k"}).run
    assert isinstance(run, PackageRun)
    assert run.command[0].endswith("mcp")
    assert run.command[1:] == ("start", "--read-only", "--port", "80.0", "--url", "https://a.example/", "/a", "/b")
    assert run.env == {"ACME_TOKEN": "t", "KEY": "k", "ACME_MODE": "fast", "AUTH": "Bearer k"}
    assert notes_of(definition) == ("The optional argument --extra was not taken over.",)


def test_fields_with_underscores_mean_the_same() -> None:
    package = {
        "registry_type": "pypi",
        "identifier": "acme-mcp",
        "version": "1.0",
        "environment_variables": [{"name": "TOKEN", "is_secret": True, "is_required": True}],
        "package_arguments": [{"type": "positional", "value_hint": "dir", "is_required": True}],
    }
    definition = only({**SERVER, "packages": [package]}, "mcp-registry")
    assert [secret.env for secret in definition.secrets] == ["TOKEN"]
    assert definition.command == ("acme-mcp", "{{com_example-acme.dir|into}}")


def test_an_image_of_the_mcp_registry_keeps_its_wishes_for_the_host_to_be_refused() -> None:
    package = {
        "registryType": "oci",
        "identifier": "ghcr.io/acme/mcp:1.0",
        "transport": {"type": "stdio"},
        "runtimeArguments": [
            {"type": "named", "name": "--mount", "value": "type=bind,src={dir},dst=/in", "variables": {"dir": {}}},
            {"type": "named", "name": "-e", "value": "MODE=fast"},
            {"type": "named", "name": "--gpus", "value": "all"},
        ],
    }
    definition = only({**SERVER, "packages": [package]}, "mcp-registry")
    assert definition.image == "ghcr.io/acme/mcp:1.0"
    assert definition.host_paths == ("{{com_example-acme.dir}}:/in",)
    assert [item.name for item in definition.env] == ["MODE"]
    assert notes_of(definition) == ("The runtime argument --gpus was not taken over.",)
    assert [objection.field for objection in objections_of(definition)] == ["hostPaths"]


def test_a_remote_of_the_mcp_registry_takes_its_headers_from_credentials() -> None:
    remote = {
        "type": "streamable-http",
        "url": "https://{tenant}.acme.example/mcp",
        "variables": {"tenant": {"default": "public"}},
        "headers": [
            {"name": "Authorization", "value": "Bearer {token}", "variables": {"token": {"isSecret": True}}},
            {"name": "X-API-Key", "isSecret": True, "isRequired": True},
            {"name": "X-Mode", "default": "fast"},
        ],
    }
    definition = only({**SERVER, "packages": [], "remotes": [remote]}, "mcp-registry")
    assert render(definition, "acme", {"TOKEN": "t", "xApiKey": "k"}).run == RemoteRun(
        url="https://public.acme.example/mcp",
        headers={"Authorization": "Bearer t", "X-API-Key": "k", "X-Mode": "fast"},
    )


def test_a_page_of_the_mcp_registry_gives_the_newest_version_of_each_server() -> None:
    official = "io.modelcontextprotocol.registry/official"
    newer = {**SERVER, "packages": [{**PACKAGE, "version": "2.0.0"}]}
    page = {
        "servers": [
            {"server": newer, "_meta": {official: {"status": "active", "isLatest": True}}},
            {"server": SERVER, "_meta": {official: {"status": "active", "isLatest": False}}},
            {"server": {**SERVER, "name": "com.example/gone"}, "_meta": {official: {"status": "deleted"}}},
        ],
        "metadata": {"count": 3},
    }
    catalog = read(page)
    assert [d.package.version for d in catalog.definitions if d.package] == ["2.0.0"]
    assert [str(refusal) for refusal in catalog.refused] == ["com.example/gone: status: its publisher has withdrawn it"]


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ({"packages": [{**PACKAGE, "registryType": "nuget"}]}, "packages: offers no npm, PyPI or image package"),
        ({"packages": [{**PACKAGE, "transport": {"type": "sse"}}]}, "but: npm over sse"),
        ({"packages": [{**PACKAGE, "version": "latest"}]}, "packages.version: names no version of @acme/mcp"),
        ({"packages": [{**PACKAGE, "packageArguments": [{"type": "positional", "isSecret": True, "isRequired": True,
                                                         "valueHint": "token"}]}]}, "command: would expose"),
        ({"packages": "x", "remotes": []}, "packages: expected a list"),
        ({"packages": [5]}, "packages.0: expected an object"),
    ],
)  # fmt: skip
def test_what_the_mcp_registry_offers_and_cannot_run_here(server: dict[str, Any], reason: str) -> None:
    assert reason in refusal({**SERVER, **server})


# -- configurations of clients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arguments", "package", "program"),
    [
        ("npx", ["-y", "@acme/mcp@1.2.3", "--fast"], ("npm", "@acme/mcp", "1.2.3"), ("mcp", "--fast")),
        ("npx", ["--yes", "--package=@acme/mcp@1.2.3", "acme", "go"], ("npm", "@acme/mcp", "1.2.3"), ("acme", "go")),
        ("cmd", ["/c", "npx", "-y", "acme@2.0.0"], ("npm", "acme", "2.0.0"), ("acme",)),
        ("C:\\Tools\\npx.cmd", ["acme@2.0.0"], ("npm", "acme", "2.0.0"), ("acme",)),
        ("uvx", ["acme-mcp==1.0"], ("pypi", "acme-mcp", "1.0"), ("acme-mcp",)),
        ("uvx", ["acme-mcp@1.0", "--x=1"], ("pypi", "acme-mcp", "1.0"), ("acme-mcp", "--x=1")),
        ("uvx", ["--from", "acme[all]==1.0", "acme-server"], ("pypi", "acme", "1.0"), ("acme-server",)),
        ("uv", ["tool", "run", "acme@1.0"], ("pypi", "acme", "1.0"), ("acme",)),
        ("pipx", ["run", "--spec", "acme==1.0", "serve"], ("pypi", "acme", "1.0"), ("serve",)),
        ("npx -y acme@1.0.0 --fast", [], ("npm", "acme", "1.0.0"), ("acme", "--fast")),
    ],
)
def test_a_command_that_names_a_package_becomes_that_package(
    command: str, arguments: list[str], package: tuple[str, ...], program: tuple[str, ...]
) -> None:
    definition = only(client(command=command, args=arguments), "mcp-servers")
    assert definition.package is not None
    assert (definition.package.registry, definition.package.name, definition.package.version) == package
    assert definition.command == program


def test_credentials_of_a_client_are_asked_of_each_caller_and_settings_stay() -> None:
    env = {
        "GITHUB_TOKEN": CREDENTIAL,
        "API_KEY": "<your key>",
        "MODE": "production",
        "REGION": "",
        "DSN": f"db://u:{CREDENTIAL}@h/d",
    }
    definition = only(client(command="npx", args=["-y", "acme@1.0.0"], env=env), "mcp-servers")
    assert [secret.env for secret in definition.secrets] == ["GITHUB_TOKEN", "API_KEY", "DSN"]
    run = render(definition, "acme", {"githubToken": "t", "apiKey": "k", "dsn": "d", "REGION": "eu"}).run
    assert isinstance(run, PackageRun)
    assert run.env == {"GITHUB_TOKEN": "t", "API_KEY": "k", "DSN": "d", "MODE": "production", "REGION": "eu"}
    assert [note.split()[3] for note in notes_of(definition)] == ["GITHUB_TOKEN", "DSN"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DB_PASS", "hunter2"),
        ("KEY_PASSPHRASE", "12345"),
        ("CONNECTION_STRING", "Server=db;User=me"),
        ("NOTIFY", "https://hooks.slack.com/services/T000/B000/x"),
        ("LOGIN", "letmein"),
        ("OPENAPI_MCP_HEADERS", '{"X-Thing": "hunter2"}'),
        ("DATABASE", "host=db password=hunter2 dbname=${env:NAME}"),
        ("FALLBACK_VALUE", "${OTHER:-hunter2}"),
    ],
)
def test_no_value_of_a_variable_that_may_be_a_credential_is_shown_to_others(name: str, value: str) -> None:
    definition = only(client(command="npx", args=["acme@1.0.0"], env={name: value}), "mcp-servers")
    for word in ("hunter2", "12345", "letmein", "User=me", "T000"):
        assert word not in definition.model_dump_json()
    (secret,) = definition.secrets
    assert secret.required
    assert "was not taken over, as it may be a credential" in " ".join(notes_of(definition))


@pytest.mark.parametrize(
    "value",
    ["true", "8080", "-1.5", "DEBUG", "stdio", "2022-06-28", "application/json, text/event-stream",
     "https://gitlab.acme.example/api/v4", "${workspaceFolder}/memory.json"],
)  # fmt: skip
def test_a_value_that_is_plainly_nobodys_stays(value: str) -> None:
    definition = only(client(command="npx", args=["acme@1.0.0"], env={"X": value}), "mcp-servers")
    run = render(definition, "acme", {}).run
    assert isinstance(run, PackageRun)
    assert run.env == {"X": value.replace("${workspaceFolder}", "/var/lib/mcp/acme")}


@pytest.mark.parametrize(
    ("name", "value", "stays"),
    [
        ("AWS_REGION", "eu-west-1", True),
        ("LLM_MODEL", "anthropic/claude", True),
        ("TZ", "Europe/Berlin", True),
        ("AUTH_MODE", "hunter2", False),
        ("ACME_MODE", CREDENTIAL, False),
    ],
)
def test_a_word_stays_under_a_name_that_asks_for_no_more(name: str, value: str, stays: bool) -> None:
    definition = only(client(command="npx", args=["acme@1.0.0"], env={name: value}), "mcp-servers")
    assert (value in definition.model_dump_json()) is stays
    assert bool(definition.secrets) is not stays


@pytest.mark.parametrize(
    ("name", "value", "options", "sent"),
    [
        ("Cookie", "session=hunter2", {"cookie": "c"}, "c"),
        ("Cookie", "session=hunter2; lang=${LANGUAGE}", {"cookie": "c"}, "c"),
        ("Cookie", "session=${SESSION}", {"SESSION": "s"}, "session=s"),
        ("X-Team", "hunter2", {"xTeam": "t"}, "t"),
        ("X-Team", "<your team>", {"xTeam": "t"}, "t"),
        ("Authorization", "Bot ${TOKEN}", {"TOKEN": "t"}, "Bot t"),
        ("Accept", "application/json", {}, "application/json"),
    ],
)
def test_no_value_of_a_header_that_may_be_a_credential_is_shown_to_others(
    name: str, value: str, options: dict[str, str], sent: str
) -> None:
    definition = only(client(url="https://acme.example/mcp", headers={name: value}), "mcp-servers")
    assert "hunter2" not in definition.model_dump_json()
    assert render(definition, "acme", options).run == RemoteRun(url="https://acme.example/mcp", headers={name: sent})


def test_inputs_of_vs_code_become_credentials_and_settings() -> None:
    text = """
    // what VS Code writes
    {"inputs": [{"id": "acme-key", "type": "promptString", "description": "A key", "password": true},
                {"id": "region", "type": "pickString", "options": ["eu", "us"], "default": "eu"}],
     "servers": {"acme": {"type": "stdio", "command": "uvx", "args": ["acme@1.0", "${workspaceFolder}/x"],
                          "env": {"KEY": "${input:acme-key}", "REGION": "${input:region}"}},}, /* more */}
    """
    catalog = read_document(text.encode(), origin="mcp.json")
    (definition,) = catalog.definitions
    assert definition.secrets[0].description == "A key"
    run = render(definition, "acme", {"KEY": "k"}).run
    assert isinstance(run, PackageRun)
    assert run.command[1:] == ("/var/lib/mcp/acme/x",)
    assert run.env == {"KEY": "k", "REGION": "eu"}


def test_docker_run_becomes_an_image_with_its_wishes() -> None:
    arguments = [
        "run", "-i", "--rm", "-e", "ACME_TOKEN", "-e", "MODE=production", "-v", "data:/data", "-v", "/home/me:/in:ro",
        "--network=host", "--privileged", "--name", "acme", "example/acme:1", "--stdio",
    ]  # fmt: skip
    definition = only(client(command="docker", args=arguments, env={"ACME_TOKEN": CREDENTIAL}), "mcp-servers")
    assert (definition.image, definition.command) == ("example/acme:1", ("--stdio",))
    assert [secret.env for secret in definition.secrets] == ["ACME_TOKEN"]
    assert (definition.volumes, definition.host_paths) == (("data:/data",), ("/home/me:/in:ro",))
    assert definition.host_access == {"network": "host", "privileged": True}
    assert "Not taken over of docker run: --name." in notes_of(definition)


def test_docker_run_without_wishes_can_be_run() -> None:
    definition = only(client(command="docker", args=["run", "--rm", "-i", "example/acme:1"]), "mcp-servers")
    run = render(definition, "acme", {}).run
    assert isinstance(run, ImageRun)
    assert run.image == "example/acme:1"


@pytest.mark.parametrize(
    "server",
    [
        {"url": "https://acme.example/mcp", "headers": {"Authorization": f"Bearer {CREDENTIAL}", "X-Mode": "prod"}},
        {"type": "http", "serverUrl": "https://acme.example/mcp",
         "headers": {"Authorization": "Bearer ${env:ACME_TOKEN}", "X-Mode": "prod"}},
        {"command": "npx", "args": ["-y", "mcp-remote", "https://acme.example/mcp", "--header",
                                    "Authorization: Bearer ${ACME_TOKEN}", "--header", "X-Mode: prod"],
         "env": {"ACME_TOKEN": CREDENTIAL}},
    ],
)  # fmt: skip
def test_a_url_becomes_a_remote_with_its_credentials_asked_for(server: dict[str, Any]) -> None:
    definition = only(client(**server), "mcp-servers")
    run = render(definition, "acme", {"token": "t"}).run
    assert run == RemoteRun(url="https://acme.example/mcp", headers={"Authorization": "Bearer t", "X-Mode": "prod"})


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ({"command": "npx", "args": ["-y", "acme"]}, "args: names no version of acme"),
        ({"command": "npx", "args": ["-y", "acme@latest"]}, "args: asks for acme latest"),
        ({"command": "uvx", "args": ["--from", "git+https://git.example/acme", "acme"]}, "names no package of PyPI"),
        ({"command": "node", "args": ["/home/me/server.js"]}, "command: node runs a program of the machine"),
        ({"command": "/usr/local/bin/acme"}, "command: acme runs a program of the machine"),
        ({"command": "npx", "args": ["acme@1.0.0", "--api-key", CREDENTIAL]}, "args: --api-key takes a credential"),
        ({"command": "npx", "args": ["acme@1.0.0", f"--token={CREDENTIAL}"]}, "args: --token takes a credential"),
        ({"command": "npx", "args": ["acme@1.0.0", CREDENTIAL]}, "args: one of them takes a credential"),
        ({"url": f"https://acme.example/mcp?apiKey={CREDENTIAL}"}, "url: holds a credential in apiKey"),
        ({"url": f"https://acme.example/s/{CREDENTIAL}/mcp"}, "url: holds a credential in its path"),
        ({"url": f"https://me:{CREDENTIAL}@acme.example/mcp"}, "url: holds a password"),
        ({"command": "docker", "args": ["run", "-i"]}, "args: docker run names no image"),
        ({"command": "npx", "args": "acme"}, "args: expected a list"),
        ({"command": "npx", "args": ["acme@1.0.0"], "env": {"A": {}}}, "env.A: expected text"),
        ({}, "command: has neither a command nor a url"),
    ],
)
def test_what_a_client_runs_and_sandgate_cannot_is_refused_without_the_credential(
    server: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(client(**server))


def test_servers_of_litellm_take_their_credentials_from_callers() -> None:
    document = {
        "model_list": [],
        "mcp_servers": {
            "acme_mcp": {
                "url": "https://acme.example/mcp", "transport": "http", "auth_type": "bearer_token",
                "authentication_token": "os.environ/ACME_TOKEN", "alias": "acme two",
                "static_headers": {"X-Mode": "prod"}, "allowed_tools": ["a"], "description": "Does things.",
            },
        },
    }  # fmt: skip
    definition = only(document, "litellm")
    assert (definition.description, definition.aliases) == ("Does things.", ("acme-two",))
    assert render(definition, "acme", {"ACME_TOKEN": "t"}).run == RemoteRun(
        url="https://acme.example/mcp", headers={"X-Mode": "prod", "Authorization": "Bearer t"}
    )
    assert notes_of(definition)[0].startswith("Not taken over: allowed_tools.")


def test_a_command_of_litellm_is_read_like_that_of_a_client() -> None:
    server = {"command": "uvx", "args": ["acme@1.0"], "env": {"ACME_KEY": "os.environ/MY_KEY", "MODE": "production"}}
    definition = only({"mcp_servers": {"acme": {**server, "transport": "stdio"}}}, "litellm")
    assert [secret.env for secret in definition.secrets] == ["ACME_KEY"]
    assert "OpenAPI" in refusal({"mcp_servers": {"acme": {"spec_path": "x.json"}}})


# -- documents ---------------------------------------------------------------------------------------------------------


def test_a_bad_entry_does_not_stop_the_others() -> None:
    servers = {"bad": 5, "good": {"url": "https://acme.example/mcp"}, "worse": {"command": "make"}}
    catalog = read({"mcpServers": servers})
    assert [definition.name for definition in catalog.definitions] == ["good"]
    assert [str(refusal).split(":")[0] for refusal in catalog.refused] == ["bad", "worse"]


def test_of_two_entries_that_come_to_one_name_the_first_is_kept() -> None:
    catalog = read({"mcpServers": {"a b": {"url": "https://1.example"}, "a-b": {"url": "https://2.example"}}})
    assert [d.remote.url for d in catalog.definitions if d.remote] == ["https://1.example"]
    assert [str(refusal) for refusal in catalog.refused] == [
        "a-b: name: an earlier entry of the document has this name"
    ]


@pytest.mark.parametrize(
    "document", [None, 5, "text", [], {}, {"servers": []}, {"mcpServers": {}}, {"name": "x"}, [{}]]
)
def test_a_document_of_no_known_format_is_an_error(document: object) -> None:
    with pytest.raises(CatalogError, match=r"given\.json: is no catalog of a known format"):
        read(document)


@pytest.mark.parametrize("text", [b"{", b"a: [", b"\xff\xff", b"a: 1\na: 2", b"!!python/name:os.system x"])
def test_text_that_is_neither_yaml_nor_json_is_an_error(text: bytes) -> None:
    with pytest.raises(CatalogError, match="bad: is neither YAML nor JSON"):
        read_document(text, origin="bad")


def test_a_few_lines_that_grow_without_end_are_an_error() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(CatalogError, match="has more than 1000000 values"):
        read_document("\n".join(lines).encode(), origin="bomb")
