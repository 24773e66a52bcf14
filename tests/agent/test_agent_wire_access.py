"""Who may call the agent, and how it refuses."""

import os

import httpx
import pytest
from e2b import InvalidArgumentException

from tests.agent.running_agent import ACCESS_TOKEN, CONTROL_TOKEN, MCP_TOKEN, RunningAgent, basic
from tests.waiting import BOUND_S

LIST = "/process.Process/List"


def test_health_is_open_to_everybody(fresh_agent: RunningAgent) -> None:
    with fresh_agent.client(headers={}) as client:
        response = client.get("/health")

    assert (response.status_code, response.content) == (204, b"")


def test_before_the_first_init_nothing_else_is(fresh_agent: RunningAgent) -> None:
    with fresh_agent.client() as client:
        answers = [client.get("/files?path=x"), client.post(LIST, json={}), client.get("/nothing")]

    assert [answer.status_code for answer in answers] == [401, 401, 401]


@pytest.mark.parametrize("headers", [{}, {"X-Control-Token": "wrong"}, {"X-Access-Token": ACCESS_TOKEN}])
def test_init_needs_the_control_token(agent: RunningAgent, headers: dict[str, str]) -> None:
    with agent.client(headers=headers) as client:
        response = client.post("/init", json={"sandboxId": "i", "accessToken": "stolen"})

    assert (response.status_code, response.json()["code"]) == (401, 401)


def test_init_can_be_repeated_and_the_last_one_wins(fresh_agent: RunningAgent) -> None:
    assert fresh_agent.initialise().status_code == 204
    assert fresh_agent.initialise(accessToken="another").status_code == 204

    with fresh_agent.client() as client:
        assert client.post(LIST, json={}).status_code == 401
        assert client.post(LIST, json={}, headers={"X-Access-Token": "another"}).status_code == 200


def test_init_leaves_the_mcp_token_for_root_only_and_the_facts_for_all(fresh_agent: RunningAgent) -> None:
    fresh_agent.initialise(mcpToken="older and longer than the next")
    fresh_agent.initialise()

    token_file = fresh_agent.directory / "mcp-gateway" / ".token"
    assert token_file.read_bytes() == MCP_TOKEN.encode()
    assert oct(token_file.stat().st_mode) == "0o100600"
    facts = {path.name: path.read_text() for path in (fresh_agent.directory / "facts").iterdir()}
    assert facts == {".E2B_SANDBOX": "true", ".E2B_SANDBOX_ID": "itestsandbox", ".E2B_TEMPLATE_ID": "base"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not valid JSON"),
        (b"[]", "the body must be a JSON object"),
        (b'{"sandboxId": "i"}', "sandboxId and accessToken are required"),
        (b'{"sandboxId": "i", "accessToken": "t", "envs": {"A": 1}}', "envs must map names to strings"),
        (b'{"sandboxId": "i", "accessToken": "t", "defaultUser": 7}', "defaultUser must be a string"),
    ],
)
def test_a_wrong_init_is_refused_by_field(agent: RunningAgent, body: bytes, message: str) -> None:
    with agent.client(headers={"X-Control-Token": CONTROL_TOKEN}) as client:
        response = client.post("/init", content=body)

    assert (response.status_code, response.json()) == (400, {"code": 400, "message": message})


@pytest.mark.parametrize("token", [None, "", "wrong", ACCESS_TOKEN + "x", "ä"])
def test_every_path_needs_the_access_token(agent: RunningAgent, token: str | None) -> None:
    headers = [] if token is None else [(b"X-Access-Token", token.encode())]
    stream = [*headers, (b"Content-Type", b"application/connect+json")]
    with agent.client(headers={}) as client:
        answers = [
            client.post(LIST, json={}, headers=headers),
            client.post("/process.Process/Start", content=b"\0\0\0\0\2{}", headers=stream),
            client.get("/nothing", headers=headers),
        ]

    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(401, 401)] * 3


def test_files_need_a_token_or_a_signature(agent: RunningAgent) -> None:
    with agent.client(headers={}) as client:
        nothing = client.get("/files?path=x")
        wrong = client.get("/files?path=x&signature=v1_wrong")

    assert (nothing.status_code, nothing.json()) == (401, {"code": 401, "message": "missing signature query parameter"})
    assert (wrong.status_code, wrong.json()) == (401, {"code": 401, "message": "invalid signature"})


def test_a_signature_is_for_its_path_its_user_and_its_direction_only(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.write("mine", "x")
    url = sandbox.download_url("mine", user="user")

    with agent.client(headers={}) as client:
        changed = [
            client.get(url.replace("path=mine", "path=other")),
            client.get(url.replace("username=user", "username=root")),
            client.post(url, files={"file": b"y"}),
            client.get(url, headers={"X-Access-Token": "wrong"}),
        ]
        assert client.get(url).text == "x"

    assert [answer.status_code for answer in changed] == [401, 401, 401, 401]


def test_an_expiration_that_is_no_number_has_expired(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    url = sandbox.download_url("mine", use_signature_expiration=60)

    response = httpx.get(url.rpartition("=")[0] + "=never", timeout=BOUND_S)

    assert response.status_code == 401


def test_basic_credentials_name_a_user_and_prove_nothing(agent: RunningAgent) -> None:
    with agent.client() as client:
        known = client.post(LIST, json={}, headers=basic("root"))
        unknown = client.post(LIST, json={}, headers=basic("nobody-knows"))
        broken = client.post(LIST, json={}, headers={"Authorization": "Basic ???"})

    assert known.status_code == 200
    assert (unknown.status_code, unknown.json()) == (
        401,
        {"code": "unauthenticated", "message": "invalid username: 'nobody-knows'"},
    )
    assert broken.status_code == 401


def test_without_credentials_the_default_user_acts(fresh_agent: RunningAgent) -> None:
    fresh_agent.initialise(defaultUser="root")

    assert fresh_agent.sandbox().commands.run("id -un").stdout == "root\n"


def test_processes_start_in_the_default_directory_and_empty_paths_lead_there(fresh_agent: RunningAgent) -> None:
    fresh_agent.initialise(defaultWorkdir="~/app")
    sandbox = fresh_agent.sandbox()
    with pytest.raises(InvalidArgumentException, match=f"cwd '{fresh_agent.home}/app' does not exist"):
        sandbox.commands.run("true")

    sandbox.files.write("app/file", "x")  # relative paths start at the home all the same

    assert sandbox.commands.run("pwd").stdout == f"{fresh_agent.home}/app\n"
    assert sandbox.commands.run("pwd", cwd="/usr").stdout == "/usr\n"
    assert [entry.name for entry in sandbox.files.list("")] == ["file"]


def test_the_agent_ends_what_it_started_when_it_is_told_to_stop(fresh_agent: RunningAgent) -> None:
    fresh_agent.initialise()
    handle = fresh_agent.sandbox().commands.run("sleep 1000", background=True)

    fresh_agent.process.terminate()

    assert fresh_agent.process.wait(timeout=BOUND_S) == 0
    assert not os.path.exists(f"/proc/{handle.pid}")
