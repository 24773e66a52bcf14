"""One REST call gives a sandbox, one MCP URL and a token; real Docker, real servers, real clients."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from e2b import Sandbox
from e2b.exceptions import SandboxException

from tests.e2e.conftest import SECRET, Surroundings
from tests.e2e.installation import Era, Installation, call, mcp_client

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

CUSTOM = "github/acme/hello"
EVERY_SERVER: dict[str, dict[str, Any]] = {
    "time": {},
    "fetch": {},
    "fetchPrivate": {},
    "git": {},
    "sqlite": {},
    "everything": {},
    "filesystem": {},
    "memory": {},
    "sequentialthinking": {},
    "echoRemote": {"echoToken": SECRET},
    "echoImage": {"echoApiKey": SECRET},
    CUSTOM: {"run_cmd": "python3 server.py", "install_cmd": "touch installed", "envs": {"PLACE": "here"}},
}


@pytest.fixture(scope="module")
def sandbox(installation: Installation) -> Iterator[dict[str, Any]]:
    """With every server there is."""
    created = installation.create(mcp=EVERY_SERVER)
    yield created
    installation.delete(created["sandboxID"])


@pytest.fixture
def sdk(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The E2B SDK, with its environment changed and nothing else."""
    for name, value in installation.sdk_environment.items():
        monkeypatch.setenv(name, value)


def test_every_server_is_listed_when_create_answers_and_ready_soon(
    installation: Installation, sandbox: dict[str, Any]
) -> None:
    assert {name: server["listed"] for name, server in sandbox["mcp"]["servers"].items()} == dict.fromkeys(
        EVERY_SERVER, True
    )
    assert installation.states(sandbox["sandboxID"]) == dict.fromkeys(EVERY_SERVER, "ready")


@pytest.mark.parametrize("era", ["legacy", "auto"])
async def test_a_tool_of_each_server_answers_at_the_one_url(
    sandbox: dict[str, Any], sdk: None, surroundings: Surroundings, era: Era
) -> None:
    workspace = Sandbox.connect(sandbox["sandboxID"])
    workspace.commands.run("mkdir -p repo && cd repo && git init -q && echo text > new.txt")
    async with mcp_client(sandbox, era) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        assert len(tools) == len(set(tools))
        # Both echo servers and server-everything have a tool of this name: all of them carry their server's.
        assert {"everything_echo", "echoRemote_echo", "echoImage_echo"} <= set(tools)
        assert "echo" not in tools
        assert "UTC" in await call(client, "get_current_time", timezone="UTC")
        assert "new.txt" in await call(client, "git_status", repo_path="/home/user/repo")
        await call(client, "create_table", query="CREATE TABLE IF NOT EXISTS t (a)")
        assert "'t'" in await call(client, "list_tables")
        assert "hi" in await call(client, "everything_echo", message="hi")
        assert "text" in await call(client, "read_text_file", path="/home/user/repo/new.txt")
        assert "entities" in await call(client, "read_graph")
        thought = {"thought": "t", "nextThoughtNeeded": False, "thoughtNumber": 1, "totalThoughts": 1}
        assert "thoughtNumber" in await call(client, "sequentialthinking", **thought)
        assert await call(client, "echoRemote_echo", text="over http") == "over http"
        assert await call(client, "echoImage_echo", text="over a socket") == "over a socket"
        assert await call(client, "hello") == "hello from here, installed: True"
        page = f"http://{surroundings.host}:{surroundings.web_port}/acme/"
        assert "hello/" in await call(client, "fetchPrivate_fetch", url=page)
        refused = await client.call_tool("fetch_fetch", {"url": page})
        assert refused.is_error
        assert "not a public address" in str(refused.content)
        assert (await client.list_prompts()).prompts
        assert (await client.list_resources()).resources


async def test_a_credential_reaches_its_server(sandbox: dict[str, Any]) -> None:
    async with mcp_client(sandbox) as client:
        for tool, length in (("echoImage_whoami", len(SECRET)), ("echoRemote_whoami", len(f"Bearer {SECRET}"))):
            assert await call(client, tool) == f"...{SECRET[-4:]} ({length} characters)"


def test_root_in_the_workspace_finds_no_credential(sandbox: dict[str, Any], sdk: None) -> None:
    workspace = Sandbox.connect(sandbox["sandboxID"])
    # The pattern is written so that the searching commands do not hold what they search for.
    pattern = f"{SECRET[:-1]}[{SECRET[-1]}]"
    for search in (
        f"cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c '{pattern}'",
        f"grep -rslE '{pattern}' / --exclude-dir=proc --exclude-dir=sys --exclude-dir=dev"
        " --exclude-dir=mcp-store | wc -l",
    ):
        found = workspace.commands.run(f"{search} || true", user="root", timeout=120)
        assert found.stdout.strip() == "0", search
    processes = workspace.commands.run("ps -eo args", user="root").stdout
    assert "sandgate_gateway" not in processes
    assert "sandgate_agent" in processes


def test_no_credential_is_visible_from_outside(sandbox: dict[str, Any], installation: Installation) -> None:
    names = [installation.container(sandbox["sandboxID"], role) for role in ("gateway", "workspace")]
    client = docker.APIClient()
    for name in names:
        assert SECRET not in str(client.inspect_container(name))
        assert SECRET not in client.logs(name).decode()
    client.close()
    for file in (*installation.home.glob("sandgate.db*"), installation.log):
        assert SECRET.encode() not in file.read_bytes()
    for secret_file in ("api-key", "encryption-key"):
        assert (installation.home / secret_file).stat().st_mode & 0o777 == 0o600


async def test_wrong_tokens_are_refused(sandbox: dict[str, Any], installation: Installation) -> None:
    url = sandbox["mcp"]["url"]
    with installation.http() as http:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {installation.key}"}):
            answer = http.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "ping"}, headers=headers)
            assert answer.status_code == 401
            assert "Bearer" in answer.headers["WWW-Authenticate"]


async def test_names_carry_their_server_if_asked_to(installation: Installation) -> None:
    created = installation.create(mcp={"time": {}}, mcpOptions={"naming": "always"})
    async with mcp_client(created) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == {
            "time_get_current_time",
            "time_convert_time",
        }
        assert "UTC" in await call(client, "time_get_current_time", timezone="UTC")
    installation.delete(created["sandboxID"])


def test_claude_code_attaches(sandbox: dict[str, Any], tmp_path: Path, claude: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "DISABLE_AUTOUPDATER": "1"}

    def run(*arguments: str) -> str:
        command = [str(claude), "mcp", *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout

    header = f"Authorization: Bearer {sandbox['mcp']['token']}"
    run("add", "--transport", "http", "sandgate", sandbox["mcp"]["url"], "--header", header)
    assert "✔ Connected" in run("list")


async def test_the_unmodified_sdk_creates_a_sandbox_with_servers(sdk: None, installation: Installation) -> None:
    sandbox = Sandbox.create(mcp={"time": {}, "git": {}}, envs={"COLOUR": "blue"})
    assert sandbox.commands.run("echo $COLOUR").stdout == "blue\n"
    sandbox.files.write("/home/user/note.txt", "kept")
    assert sandbox.files.read("/home/user/note.txt") == "kept"
    other = Sandbox.connect(sandbox.sandbox_id)
    token = other.get_mcp_token()
    assert token == sandbox.get_mcp_token()
    reached = {"mcp": {"url": f"{installation.url}/sandboxes/{sandbox.sandbox_id}/mcp", "token": token}}
    async with mcp_client(reached) as client:
        assert "UTC" in await call(client, "get_current_time", timezone="UTC")
    inside = sandbox.commands.run(
        "curl -s -o /dev/null -w '%{http_code}' http://localhost:50005/health; "
        "curl -s -o /dev/null -w ' %{http_code}' -X POST http://localhost:50005/mcp"
    )
    assert inside.stdout == "200 401"
    assert sandbox.kill()
    assert not sandbox.is_running()
    assert not sandbox.kill()


@pytest.mark.parametrize("template", ["base", None])
def test_the_sdk_is_told_which_server_it_named_wrongly(
    sdk: None, installation: Installation, template: str | None
) -> None:
    with pytest.raises(SandboxException, match="Failed to start MCP gateway: .*'invalid_server'"):
        Sandbox.create(template, mcp={"invalid_server": {}})


async def test_the_workspace_can_replace_its_servers(sdk: None, installation: Installation) -> None:
    created = installation.create(mcp={"time": {}})
    workspace = Sandbox.connect(created["sandboxID"])
    replaced = workspace.commands.run(
        """mcp-gateway --config '{"memory": {}}'""", user="root", envs={"GATEWAY_ACCESS_TOKEN": "my-own-token"}
    )
    assert (replaced.exit_code, replaced.stderr) == (0, "")
    assert workspace.commands.run("cat /etc/mcp-gateway/.token", user="root").stdout == "my-own-token"
    for token in ("my-own-token", created["mcp"]["token"]):
        async with mcp_client({"mcp": {**created["mcp"], "token": token}}) as client:
            assert "entities" in await call(client, "read_graph")
            assert "get_current_time" not in {tool.name for tool in (await client.list_tools()).tools}
    for command, words in (
        ("""mcp-gateway --config '{"tiem": {}}'""", "Did you mean 'time'"),
        ("mcp-gateway --config nonsense", "JSON"),
        ("mcp-gateway pull tiem", "Did you mean 'time'"),
    ):
        refused = workspace.commands.run(f"{command}; echo exit $?", user="root")
        assert refused.stdout == "exit 1\n"
        assert words in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
    assert workspace.commands.run("mcp-gateway pull time memory", user="root").exit_code == 0
    installation.delete(created["sandboxID"])


def test_a_sandbox_without_a_gateway_says_so(sdk: None, installation: Installation) -> None:
    created = installation.create(templateID="base")
    refused = Sandbox.connect(created["sandboxID"]).commands.run("mcp-gateway --config '{}'; echo exit $?", user="root")
    assert refused.stdout == "exit 1\n"
    assert "gateway" in refused.stderr
    installation.delete(created["sandboxID"])


def test_a_server_that_exits_fails_the_create_with_its_last_words(installation: Installation) -> None:
    with installation.http() as http:
        answer = http.post("/v2/sandboxes", json={"mcp": {"time": {}, "exits": {"apiKey": SECRET}}})
    assert answer.status_code == 424
    assert "'exits'" in answer.json()["message"]
    assert "cannot go on with ***" in answer.json()["message"]
    assert SECRET not in answer.text


def test_a_server_that_never_answers_is_given_up(installation: Installation) -> None:
    with installation.http() as http:
        answer = http.post("/v2/sandboxes", json={"mcp": {"silent": {}}})
    assert answer.status_code == 424
    assert "'silent' did not answer initialize within 2 s" in answer.json()["message"]


async def test_a_failed_server_does_not_hide_the_others(installation: Installation) -> None:
    options = {"onFailure": "degrade"}
    created = installation.create(mcp={"time": {}, "silent": {}, "exits": {"apiKey": SECRET}}, mcpOptions=options)
    servers = installation.servers(created["sandboxID"])
    states = {name: server["state"] for name, server in servers.items()}
    assert states == {"time": "ready", "silent": "failed", "exits": "failed"}
    assert servers["exits"]["stderr"][-1] == "cannot go on with ***"
    async with mcp_client(created) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == {"get_current_time", "convert_time"}
    installation.delete(created["sandboxID"])


def test_a_missing_image_is_named_with_its_server(installation: Installation) -> None:
    with installation.http() as http:
        answer = http.post("/v2/sandboxes", json={"mcp": {"missingImage": {}}})
    assert answer.status_code == 424
    needed = "'missingImage' needs the image sandgate-test/absent:1, which is not on the container engine"
    assert needed in answer.json()["message"]
