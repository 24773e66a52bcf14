"""Tools that are a container per call, as Docker's catalog has them: imported, named in `mcp`, called by clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import pytest
from e2b import Volume

from app.engines.images import image_tags
from app.settings import ROOT, Settings
from tests.e2e.conftest import SECRET, Surroundings, settings_for
from tests.e2e.installation import Era, Installation, call, mcp_client, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

IMAGE = "sandgate-test/tools:1"
ARGS = {"type": "object", "properties": {"args": {"type": "array", "items": {"type": "string"}}}, "required": ["args"]}
PATH = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}


def container_tool(name: str, parameters: dict[str, Any], *command: str, **container: Any) -> dict[str, Any]:
    about = {"name": name, "description": f"Runs {name}.", "parameters": parameters}
    return {**about, "container": {"image": IMAGE, "command": command, **container}}


DOCKERS_CATALOG = {
    "registry": {
        "curl": {
            "title": "Curl",
            "type": "poci",
            "tools": [container_tool("curl", ARGS, "curl", "{{args|into}}")],
        },
        "docker": {
            "title": "Docker",
            "type": "poci",
            "tools": [container_tool("docker", ARGS, volumes=["/var/run/docker.sock:/var/run/docker.sock"])],
        },
        "media": {
            "title": "Media",
            "type": "poci",
            "tools": [
                container_tool("shell", ARGS, "sh", "-c", "{{args|into}}"),
                container_tool("file-exists", PATH, "test", "-f", "{{path}}", volumes=["{{path}}:{{path}}"]),
                container_tool("copy", PATH, "cp", "{{path}}", "{{path}}.copy", volumes=["{{path}}:{{path}}"]),
            ],
        },
    }
}
OWN = {
    "name": "own",
    "title": "Own",
    "type": "poci",
    "secrets": [{"name": "own.key", "env": "OWN_KEY"}],
    "limits": {"memoryMib": 64},
    # A time-out counts from before its container is made.
    "tools": [
        container_tool("run", ARGS, "sh", "-c", "{{args|into}}") | {"timeoutS": 60},
        container_tool("late", ARGS, "sh", "-c", "{{args|into}}") | {"timeoutS": 8},
    ],
}


@pytest.fixture(scope="module")
def tools_image() -> Iterator[str]:
    """On the engine, in no registry: the base of the sandbox images, by a name of its own."""
    settings = Settings()
    base = image_tags(ROOT / "sandbox_images", base_image=settings.base_image, ca_bundle=settings.ca_bundle).base
    client = docker.from_env()
    assert client.images.get(base).tag(IMAGE)
    yield IMAGE
    client.images.remove(IMAGE)
    client.close()


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory, surroundings: Surroundings, tools_image: str
) -> Iterator[Installation]:
    home = tmp_path_factory.mktemp("tools-home")
    folder = home / "catalog" / "servers"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text(json.dumps(OWN))
    (folder / "gone.yaml").write_text(json.dumps(OWN | {"name": "gone", "secrets": [], "tools": [absent_image()]}))
    installation = Installation(home, settings_for(surroundings))
    installation.start()
    with installation.http() as http:
        imported = http.post("/api/v1/catalog/imports", json=DOCKERS_CATALOG)
    assert imported.status_code == 201, imported.text
    yield installation
    for sandbox_id in installation.sandboxes():
        installation.delete(sandbox_id)
    installation.wait_until_nothing_runs()
    assert runs_of(installation) == []
    installation.remove()


def absent_image() -> dict[str, Any]:
    return {"name": "t", "container": {"image": "localhost:1/absent:1"}}


def runs_of(installation: Installation) -> list[str]:
    client = docker.APIClient()
    try:
        labels = [f"sandgate.installation={(installation.home / 'installation').read_text()}", "sandgate.run"]
        return [one["Names"][0] for one in client.containers(all=True, filters={"label": labels})]
    finally:
        client.close()


@pytest.mark.parametrize("era", ["legacy", "auto"])
async def test_a_tool_of_dockers_catalog_is_listed_with_its_schema_and_called(own: Installation, era: Era) -> None:
    created = own.create(mcp={"curl": {}})
    async with mcp_client(created, era) as client:
        (tool,) = (await client.list_tools()).tools
        assert (tool.name, tool.input_schema) == ("curl", ARGS)
        health = await call(client, "curl", args=["-sS", "http://localhost:50005/health"])
        assert json.loads(health)["status"] == "ok"
        refused = await client.call_tool("curl", {"args": ["-sS", "http://localhost:9"]})
        assert refused.is_error
        assert refused.meta is not None
        assert refused.meta["sandgate/run"]["exitCode"] == 7
        assert "[exit code 7]\nstderr:\ncurl: (7) Failed to connect" in str(refused.content[0].model_dump()["text"])
        wrong = await client.call_tool("curl", {"args": "-sS"})
        assert '$.args: "-sS" is not of type "array"' in str(wrong.content)
        assert wrong.is_error
    assert runs_of(own) == []
    own.delete(created["sandboxID"])


async def test_a_sandboxs_network_rules_hold_for_its_container_tools(
    own: Installation, surroundings: Surroundings
) -> None:
    fetch = ["-sS", "-m", "5", f"http://{surroundings.host}:{surroundings.web_port}/"]
    open_one = own.create(mcp={"curl": {}})
    closed = own.create(mcp={"curl": {}}, allow_internet_access=False)
    async with mcp_client(open_one) as client:
        assert "acme" in await call(client, "curl", args=fetch)
    async with mcp_client(closed) as client:
        assert (await client.call_tool("curl", {"args": fetch})).is_error
    for created in (open_one, closed):
        own.delete(created["sandboxID"])


def test_what_cannot_be_run_is_refused_when_the_sandbox_is_made(own: Installation) -> None:
    with own.http() as http:
        engine = http.post("/v2/sandboxes", json={"mcp": {"docker": {}}})
        absent = http.post("/v2/sandboxes", json={"mcp": {"gone": {}}})
    assert (engine.status_code, absent.status_code) == (400, 424)
    assert "would hand over the container engine" in engine.json()["message"]
    assert "'gone' needs the image localhost:1/absent:1" in absent.json()["message"]


async def test_files_of_a_sandboxs_volume_are_seen_and_made_and_no_others(
    own: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in own.sdk_environment.items():
        monkeypatch.setenv(name, value)
    volume = Volume.create("films")
    created = own.create(mcp={"media": {}}, volumeMounts=[{"name": "films", "path": "/films"}])
    workspace = own.sdk(created["sandboxID"])
    workspace.files.write("/films/a.txt", "scene one")
    async with mcp_client(created) as client:
        assert "exit code 0" in await call(client, "file-exists", path="/films/a.txt")
        assert (await client.call_tool("file-exists", {"path": "/films/b.txt"})).is_error
        await call(client, "copy", path="/films/a.txt")
        elsewhere = await client.call_tool("file-exists", {"path": "/etc/passwd"})
        assert "sees files in the sandbox's volumes only, not /etc/passwd. Put the files below /films." in str(
            elsewhere.content
        )
    assert workspace.files.read("/films/a.txt.copy") == "scene one"
    own.delete(created["sandboxID"])
    wait_until(lambda: Volume.destroy(volume.volume_id), own.containers)


async def test_servers_of_container_tools_come_and_go_from_outside_and_inside(own: Installation) -> None:
    created = own.create(mcp={})
    with own.http() as http:
        added = http.patch(f"/sandboxes/{created['sandboxID']}/mcp", json={"mcp": {"curl": {}}})
    assert added.json()["servers"]["curl"]["state"] == "ready"
    workspace = own.sdk(created["sandboxID"])
    token = {"GATEWAY_ACCESS_TOKEN": created["mcp"]["token"]}
    workspace.commands.run("""mcp-gateway --config '{"curl": {}, "media": {}}'""", user="root", envs=token)
    async with mcp_client(created) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert names == {"curl", "shell", "file-exists", "copy"}
        hostile = "$(id); echo `id`"
        assert await call(client, "curl", args=["--version"]) != ""
        assert hostile in await call(client, "shell", args=['printf "%s" "$0"', hostile])
    own.delete(created["sandboxID"])


async def test_a_call_is_confined_and_has_the_servers_own_credential(own: Installation) -> None:
    created = own.create(mcp={"own": {"key": SECRET}})
    async with mcp_client(created) as client:
        facts = "grep -hE 'CapEff|NoNewPrivs' /proc/self/status | cut -f2; printenv OWN_KEY"
        assert (await call(client, "run", args=[facts])).split() == ["0" * 16, "1", SECRET]
        memory = await client.call_tool("run", {"args": ["python3 -c 'bytearray(1 << 28)'"]})
        assert "exit code 137; it needed more than its 64 MiB of memory" in str(memory.content)
        late = await client.call_tool("late", {"args": ["echo begun; sleep 60"]})
        assert [block.model_dump()["text"] for block in late.content] == [
            "begun\n",
            "[exit code 137; it was ended after 8 s]",
        ]
        flood = await client.call_tool("run", {"args": ["yes"]})
        assert "it was ended because it wrote more than 64 MiB; stdout was longer than the first 1048576 bytes" in str(
            flood.content[1]
        )
        binary = await client.call_tool("run", {"args": [r"printf '\377\376'"]})
        assert binary.content[0].model_dump()["resource"]["blob"] == "//4="
    assert SECRET not in own.log.read_text()
    own.delete(created["sandboxID"])


async def test_a_call_that_is_given_up_ends_its_container_and_holds_nothing_up(own: Installation) -> None:
    created = own.create(mcp={"media": {}})
    async with mcp_client(created) as client:
        sleeping = asyncio.create_task(client.call_tool("shell", {"args": ["sleep 50"]}))
        while not runs_of(own):
            await asyncio.sleep(0.05)
        assert await call(client, "shell", args=["echo meanwhile"]) == "meanwhile\n"
        workspace = own.sdk(created["sandboxID"])
        token = {"GATEWAY_ACCESS_TOKEN": created["mcp"]["token"]}
        workspace.commands.run("""mcp-gateway --config '{"curl": {}, "media": {}}'""", user="root", envs=token)
        assert len(runs_of(own)) == 1
        sleeping.cancel()
        with suppress(asyncio.CancelledError):
            await sleeping
        while runs_of(own):  # the client hangs up meanwhile
            await asyncio.sleep(0.05)
    own.delete(created["sandboxID"])


async def test_a_killed_control_plane_leaves_no_container_and_the_caller_is_told(
    tmp_path: Path, surroundings: Surroundings, tools_image: str
) -> None:
    home = tmp_path / "home"
    (home / "catalog" / "servers").mkdir(parents=True)
    tool = container_tool("shell", ARGS, "sh", "-c", "{{args|into}}")
    (home / "catalog" / "servers" / "own.yaml").write_text(json.dumps(OWN | {"secrets": [], "tools": [tool]}))
    installation = Installation(home, settings_for(surroundings))
    try:
        installation.start()
        created = installation.create(mcp={"own": {}})
        workspace = installation.sdk(created["sandboxID"])
        # Inside, because a connection through the control plane ends with it.
        url, token = "http://localhost:50005/mcp", created["mcp"]["token"]
        asked = {"name": "shell", "arguments": {"args": ["sleep 50"]}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": asked}
        headers = f"-H 'Authorization: Bearer {token}' -H 'Accept: application/json, text/event-stream'"
        opened = {
            "jsonrpc": "2.0",
            "id": 0,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": {"name": "t", "version": "1"},
            },
        }
        post = f"curl -sS {headers} -H 'Content-Type: application/json' {url}"
        workspace.files.write("/tmp/open.json", json.dumps(opened))
        workspace.files.write("/tmp/call.json", json.dumps(message))
        session = f"$({post} -o /dev/null -D - -d @/tmp/open.json | grep -i '^mcp-session-id' | tr -d '\\r')"
        await asyncio.to_thread(
            workspace.commands.run, f'nohup {post} -H "{session}" -d @/tmp/call.json > /tmp/answer 2>&1 &'
        )
        wait_until(lambda: len(runs_of(installation)) == 1, installation.log.read_text)
        installation.kill()
        assert len(runs_of(installation)) == 1
        installation.start()
        wait_until(lambda: runs_of(installation) == [], installation.log.read_text)
        wait_until(
            lambda: "started anew" in installation.sdk(created["sandboxID"]).files.read("/tmp/answer"),
            lambda: installation.sdk(created["sandboxID"]).files.read("/tmp/answer"),
        )
        async with mcp_client(created) as client:
            assert await call(client, "shell", args=["echo again"]) == "again\n"
    finally:
        await asyncio.to_thread(installation.remove)
