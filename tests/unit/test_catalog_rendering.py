"""From a definition and a caller's options to what runs."""

from __future__ import annotations

import pytest

from app.catalog import ImageRun, OptionError, PackageRun, RemoteRun, RenderedServer, ServerDefinition, render
from app.catalog.catalog import parse_manifest

SECRET = "tok-5up3r"


def definition(text: str) -> ServerDefinition:
    return parse_manifest(text, origin="test.yaml")


PACKAGE = definition("""
name: acme-mcp
title: Acme
type: server
package: {registry: npm, name: acme-mcp, version: 1.0.0}
command: [acme, "--site={{acme-mcp.site.url}}", "{{acme-mcp.paths|into}}", --port, "{{acme-mcp.port}}"]
startTimeoutS: 12.5
secrets:
  - {name: acme-mcp.token, env: ACME_TOKEN, description: Token of your account., obtainAt: https://acme.example/tokens}
  - {name: acme-mcp.proxy, env: PROXY_PASSWORD, required: false}
env:
  - {name: HEADERS, value: '{"Authorization": "Bearer $ACME_TOKEN"}'}
  - {name: STORE, value: "{{sandbox.home}}/acme"}
  - {name: PROXY, value: $PROXY_PASSWORD}
  - {name: MODE, value: "{{acme-mcp.mode}}"}
  - {name: VERBOSE, value: "{{acme-mcp.verbose}}"}
config:
  properties:
    site:
      type: object
      properties: {url: {type: string, description: Where Acme runs.}, region: {type: string, default: eu}}
      required: [url]
    paths: {type: array, minItems: 1, items: {type: string, pattern: ^/}, default: [/data, "{{sandbox.home}}"]}
    port: {type: integer, default: 80, minimum: 1, maximum: 65535}
    ratio: {type: number}
    mode: {type: string, enum: [fast, slow]}
    code: {type: string, pattern: "^[a-z]+$"}
    verbose: {type: boolean, default: false}
    extra: {type: object}
  required: [site]
""")
IMAGE = definition("""
name: shot
title: Shot
type: server
image: example/shot@sha256:abc
command: [--out, "{{shot.out}}"]
user: "{{shot.user}}"
volumes: [shot-data:/data]
disableNetwork: true
limits: {memoryMib: 256}
config: {properties: {out: {type: string, default: /data}, user: {type: string}}}
""")
REMOTE = definition("""
name: docs
title: Docs
type: remote
remote:
  url: "https://docs.example/{{docs.space}}/mcp"
  transport_type: streamable-http
  headers: {Authorization: "Bearer ${DOCS_TOKEN}", X-Team: "$TEAM_TOKEN", X-Client: sandgate}
secrets:
  - {name: docs.token, env: DOCS_TOKEN}
  - {name: docs.team, env: TEAM_TOKEN, required: false}
config: {properties: {space: {type: string, default: main}}}
""")
CHOICE = definition("""
name: atlassian
title: Atlassian
type: server
image: example/atlassian
config:
  properties:
    confluence: {type: object, properties: {url: {type: string}, username: {type: string}}, required: [url]}
    jira: {type: object, properties: {url: {type: string}, username: {type: string}}, required: [url]}
  anyOf: [{required: [confluence]}, {required: [jira]}]
""")
NESTED: dict[str, object] = {}
for _ in range(40):
    NESTED = {"again": NESTED}
NEEDED: dict[str, object] = {"acmeToken": SECRET, "siteUrl": "https://acme.example"}


def package_run(**options: object) -> PackageRun:
    run = render(PACKAGE, "acme", NEEDED | options).run
    assert isinstance(run, PackageRun)
    return run


def refusal(server: ServerDefinition, options: dict[str, object]) -> OptionError:
    with pytest.raises(OptionError) as caught:
        render(server, server.key, options)
    return caught.value


def test_a_package_server_gets_its_command_and_environment_with_defaults_filled_in() -> None:
    assert PACKAGE.package is not None
    assert render(PACKAGE, "acme", NEEDED) == RenderedServer(
        key="acme",
        start_timeout_s=12.5,
        run=PackageRun(
            command=(
                f"/opt/mcp-store/{PACKAGE.package.digest}/bin/acme",
                "--site=https://acme.example",
                "/data",
                "/var/lib/mcp/acme",
                "--port",
                "80",
            ),
            env={
                "ACME_TOKEN": SECRET,
                "HEADERS": '{"Authorization": "Bearer tok-5up3r"}',
                "STORE": "/var/lib/mcp/acme/acme",
                "VERBOSE": "false",
            },
            placement="gateway",
            package=PACKAGE.package,
        ),
    )


def test_an_image_server_gets_what_its_container_needs() -> None:
    assert render(IMAGE, "shot", {"user": 1000}).run == ImageRun(
        image="example/shot@sha256:abc",
        command=("--out", "/data"),
        env={},
        user="1000",
        volumes=("shot-data:/data",),
        limits=IMAGE.limits,
        disable_network=True,
    )


def test_a_remote_server_gets_its_headers_without_those_that_lack_a_credential() -> None:
    assert render(REMOTE, "docs", {"token": SECRET, "space": "dev"}).run == RemoteRun(
        url="https://docs.example/dev/mcp",
        headers={"Authorization": "Bearer tok-5up3r", "X-Client": "sandgate"},
    )


@pytest.mark.parametrize("name", ["siteUrl", "site.url"])
def test_a_setting_goes_by_its_property_or_its_path(name: str) -> None:
    run = render(PACKAGE, "acme", {"acmeToken": SECRET, name: "https://x"}).run
    assert isinstance(run, PackageRun)
    assert run.command[1] == "--site=https://x"


@pytest.mark.parametrize("name", ["acmeToken", "ACME_TOKEN", "acme-mcp.token"])
def test_a_credential_goes_by_its_property_its_variable_or_its_name(name: str) -> None:
    run = render(PACKAGE, "acme", {name: SECRET, "siteUrl": "https://x"}).run
    assert isinstance(run, PackageRun)
    assert run.env["ACME_TOKEN"] == SECRET


@pytest.mark.parametrize(
    ("name", "given", "argument"),
    [
        ("port", "8080", "8080"),
        ("port", 8080.0, "8080"),
        ("siteUrl", 5, "--site=5"),
        ("paths", ("/x",), "/x"),
    ],
)
def test_a_value_may_be_written_as_another_type_where_that_is_unambiguous(
    name: str, given: object, argument: str
) -> None:
    assert argument in package_run(**{name: given}).command


@pytest.mark.parametrize(("given", "value"), [(True, "true"), ("TRUE", "true"), ("false", "false")])
def test_a_boolean_may_be_written_as_text(given: object, value: str) -> None:
    assert package_run(verbose=given).env["VERBOSE"] == value


def test_a_value_that_looks_like_a_variable_or_a_template_stays_as_it_is() -> None:
    run = package_run(siteUrl="$ACME_TOKEN{{acme-mcp.port}}")
    assert run.command[1] == "--site=$ACME_TOKEN{{acme-mcp.port}}"


def test_a_property_wins_over_another_spelling_of_its_name() -> None:
    server = definition("""
        name: two
        title: Two
        type: server
        image: example/two
        secrets: [{name: two.x, env: TWO_TOKEN, required: false}, {name: token, env: OTHER, required: false}]
    """)
    run = render(server, "two", {"token": SECRET}).run
    assert isinstance(run, ImageRun)
    assert run.env == {"TWO_TOKEN": SECRET}


def test_a_default_is_taken_as_it_is_written() -> None:
    server = definition("""
        name: two
        title: Two
        type: server
        image: example/two
        command: ["{{two.text}}"]
        config: {properties: {text: {type: string, default: "$HOME {{x|y}} {{sandbox.home}}"}}}
    """)
    run = render(server, "two", {}).run
    assert isinstance(run, ImageRun)
    assert run.command == ("$HOME {{x|y}} /tmp",)


def test_null_counts_as_not_given() -> None:
    assert package_run(port=None).command[-1] == "80"


def test_an_optional_credential_given_empty_is_left_out() -> None:
    assert "PROXY_PASSWORD" not in package_run(proxyPassword="").env


def test_a_default_may_depend_on_where_the_server_is_placed() -> None:
    server = definition("""
        name: files
        title: Files
        type: server
        package: {registry: npm, name: files, version: 1.0.0}
        command: [files, "{{files.path}}"]
        config: {properties: {path: {type: string, default: "{{sandbox.home}}/x"}}}
    """)
    here, there = render(server, "files", {}).run, render(server, "files", {}, placement="workspace").run
    assert isinstance(here, PackageRun)
    assert isinstance(there, PackageRun)
    assert (here.placement, here.command[1:]) == ("gateway", ("/var/lib/mcp/files/x",))
    assert (there.placement, there.command[1:]) == ("workspace", ("/home/user/x",))


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"acmeToken": ""}, "acmeToken", "($ACME_TOKEN of the server: Token of your account). Get one at https://acme.example/tokens"),
        ({"acmeToken": None}, "acmeToken", "this credential is required"),
        ({"siteUrl": None}, "siteUrl", "is required (Where Acme runs)"),
        ({"acmeToken": True}, "acmeToken", "expected a string, got a boolean"),
        ({"acmeToken": {"a": 1}}, "acmeToken", "expected a string, got an object"),
        ({"siteUrl": [SECRET]}, "siteUrl", "expected a string, got a list"),
        ({"port": SECRET}, "port", "expected an integer, got a string"),
        ({"port": 1.5}, "port", "expected an integer, got a number"),
        ({"port": True}, "port", "expected an integer, got a boolean"),
        ({"port": 0}, "port", "must be at least 1"),
        ({"port": "70000"}, "port", "must be at most 65535"),
        ({"ratio": "nan"}, "ratio", "expected a number, got a string"),
        ({"ratio": float("inf")}, "ratio", "expected a number, got a number"),
        ({"verbose": "yes"}, "verbose", "expected true or false, got a string"),
        ({"paths": "/a"}, "paths", "expected a list of strings, got a string"),
        ({"paths": ["/a", {"x": SECRET}]}, "paths[1]", "expected a string, got an object"),
        ({"paths": ["/a", "b"]}, "paths[1]", "does not match the pattern ^/"),
        ({"paths": []}, "paths", "breaks the rule minItems: 1"),
        ({"mode": SECRET}, "mode", 'expected one of: "fast", "slow"'),
        ({"code": SECRET}, "code", "does not match the pattern ^[a-z]+$"),
        ({"extra": SECRET}, "extra", "expected an object, got a string"),
        ({"extra": {"a": "\ud800"}}, "extra", "holds half of a surrogate pair"),
        ({"extra": NESTED}, "extra", "nests more than 32 levels"),
        ({"acmeToken": SECRET + "\0"}, "acmeToken", "holds a NUL character"),
        ({"siteUrl": "\ud800"}, "siteUrl", "holds half of a surrogate pair"),
        ({"site_url": SECRET}, None, "unknown option 'site_url'. Did you mean siteUrl?"),
        ({"zzz": SECRET}, None, "unknown option 'zzz'. It takes: acmeToken, proxyPassword, siteUrl, siteRegion"),
        ({"ACME_TOKEN": SECRET}, "acmeToken", "is given twice, under two names"),
    ],
)  # fmt: skip
def test_an_unusable_option_is_refused_by_server_and_field(
    options: dict[str, object], field: str | None, message: str
) -> None:
    error = refusal(PACKAGE, NEEDED | options)
    assert (error.server, error.field, error.status) == ("acme", field, 400)
    assert message in error.message
    assert error.message.startswith(f"MCP server acme: {field or ''}")


@pytest.mark.parametrize(
    "options",
    [
        {name: value}
        for name in ("acmeToken", "siteUrl", "port", "ratio", "verbose", "paths", "mode", "code", "extra")
        for value in (SECRET + "\0", [SECRET + "\0"], {SECRET: [SECRET + "\0"]}, [[SECRET + "\0"]])
    ],
)
def test_no_error_shows_what_was_given(options: dict[str, object]) -> None:
    error: BaseException | None = refusal(PACKAGE, NEEDED | options)
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__


def test_a_server_without_options_says_so() -> None:
    server = definition("{name: plain, title: Plain, type: server, image: example/plain}")
    assert "unknown option 'x'. It takes no options." in refusal(server, {"x": 1}).message


def test_a_choice_of_settings_is_explained() -> None:
    assert refusal(CHOICE, {}).message == "MCP server atlassian: needs confluenceUrl, or jiraUrl"


def test_one_way_of_a_choice_is_enough_and_is_checked_on_its_own() -> None:
    assert isinstance(render(CHOICE, "atlassian", {"jiraUrl": "https://jira"}).run, ImageRun)
    assert refusal(CHOICE, {"jiraUsername": "ann"}).field == "jiraUrl"


@pytest.mark.parametrize(("server", "where"), [(IMAGE, "in a container of its own"), (REMOTE, "elsewhere")])
def test_only_a_package_server_can_be_placed(server: ServerDefinition, where: str) -> None:
    with pytest.raises(OptionError, match=where):
        render(server, server.key, {"token": SECRET} if server is REMOTE else {}, placement="workspace")


def test_a_server_with_credentials_stays_out_of_the_workspace() -> None:
    with pytest.raises(OptionError, match="stay out of the workspace"):
        render(PACKAGE, "acme", NEEDED, placement="workspace")


def test_a_header_cannot_be_split_by_a_credential() -> None:
    error = refusal(REMOTE, {"token": f"{SECRET}\r\nX-Evil: 1"})
    assert error.message == "MCP server docs: token: holds a control character, which header Authorization cannot carry"


@pytest.mark.parametrize("space", ["a b", "a\r\nb", "a\tb"])
def test_a_url_cannot_be_split_by_an_option(space: str) -> None:
    error = refusal(REMOTE, {"token": SECRET, "space": space})
    assert "its URL cannot carry" in error.message


def test_what_was_rendered_shows_no_credential() -> None:
    shown = [repr(render(PACKAGE, "acme", NEEDED)), repr(render(REMOTE, "docs", {"token": SECRET}))]
    assert SECRET not in "".join(shown)
