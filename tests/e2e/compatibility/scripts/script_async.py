"""The script of script.py with the asynchronous Python SDK, whose transports and streams are others."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import httpx2
from e2b import (
    ALL_TRAFFIC,
    AsyncSandbox,
    AsyncSecret,
    AsyncTemplate,
    AsyncVolume,
    BuildException,
    CommandExitException,
    FilesystemEvent,
    FilesystemEventType,
    FileType,
    PtySize,
    SandboxException,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
    wait_for_port,
)
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

Failure = TypeVar("Failure", bound=Exception)

BOOT_ID = "/proc/sys/kernel/random/boot_id"
FETCH_A_PACKAGE = "python3 -m pip download --quiet --no-deps --no-cache-dir --dest /tmp six"
ONCE, PATIENTLY = "--retries 0 --timeout 10", "--retries 3 --timeout 30"
SERVE = "python3 -m http.server 8000 --bind 127.0.0.1"


def new_name(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:12]}"


async def until(is_so: Callable[[], Awaitable[object]], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not await is_so():
        assert time.monotonic() < deadline, "it did not become so in time"
        await asyncio.sleep(0.2)


async def failure_of(call: Awaitable[object], kind: type[Failure]) -> Failure:
    try:
        await call
    except kind as error:
        return error
    raise AssertionError("it did not fail")


async def get(url: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60) as client:
        return await client.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()})


async def is_served(url: str, **headers: str) -> bool:
    return (await get(url, **headers)).status_code == 200


async def is_paused(sandbox: AsyncSandbox) -> bool:
    return (await sandbox.get_info()).state is SandboxState.PAUSED


async def life() -> None:
    mark = new_name("mark")
    metadata = {"mark": mark, "a b": "c&d"}
    async with await AsyncSandbox.create(metadata=metadata, envs={"COLOUR": "blue"}, timeout=120) as sandbox:
        assert (await sandbox.commands.run("echo $COLOUR")).stdout == "blue\n"
        info = await sandbox.get_info()
        assert (info.metadata, info.state) == (metadata, SandboxState.RUNNING)
        query = SandboxQuery(metadata=metadata, state=[SandboxState.RUNNING])
        listed = await AsyncSandbox.list(query=query).next_items()
        assert [one.sandbox_id for one in listed] == [sandbox.sandbox_id]
        other = await AsyncSandbox.connect(sandbox.sandbox_id)
        assert await sandbox.is_running()
        assert await other.kill()
        assert not await sandbox.kill()
        assert not await sandbox.is_running()
        await failure_of(AsyncSandbox.connect(sandbox.sandbox_id), SandboxNotFoundException)


async def timeouts() -> None:
    async with await AsyncSandbox.create(timeout=60) as sandbox:
        before = (await sandbox.get_info()).end_at
        await sandbox.set_timeout(600)
        longer = (await sandbox.get_info()).end_at
        assert longer > before
        await AsyncSandbox.connect(sandbox.sandbox_id, timeout=30)
        assert (await sandbox.get_info()).end_at == longer
        await sandbox.set_timeout(1)

        async def has_ended() -> bool:
            return not await sandbox.is_running()

        await until(has_ended)


async def pages() -> None:
    mark = new_name("mark")
    made = [await AsyncSandbox.create(metadata={"mark": mark}) for _ in range(3)]
    try:
        paginator = AsyncSandbox.list(query=SandboxQuery(metadata={"mark": mark}), limit=2)
        found = []
        while paginator.has_next:
            found += [one.sandbox_id for one in await paginator.next_items()]
        assert found == [sandbox.sandbox_id for sandbox in reversed(made)]
    finally:
        for sandbox in made:
            await sandbox.kill()


async def commands() -> None:
    async with await AsyncSandbox.create() as sandbox:
        result = await sandbox.commands.run("echo out; echo err >&2; pwd", cwd="/tmp", envs={"A": "b"})
        assert (result.stdout, result.stderr, result.exit_code) == ("out\n/tmp\n", "err\n", 0)
        assert (await sandbox.commands.run("whoami", user="root")).stdout == "root\n"
        error = await failure_of(sandbox.commands.run("echo sorry >&2; exit 3"), CommandExitException)
        assert (error.exit_code, error.stderr) == (3, "sorry\n")
        said: list[str] = []
        await sandbox.commands.run("for n in 1 2 3; do echo $n; done", on_stdout=said.append)
        assert "".join(said) == "1\n2\n3\n"

        reader = await sandbox.commands.run("cat; echo done", background=True, stdin=True)
        await sandbox.commands.send_stdin(reader.pid, "hello\n")
        await sandbox.commands.close_stdin(reader.pid)
        assert (await reader.wait()).stdout == "hello\ndone\n"

        async with asyncio.TaskGroup() as group:
            runs = [group.create_task(sandbox.commands.run(f"sleep 0.2; echo {n}")) for n in range(20)]
        assert [run.result().stdout for run in runs] == [f"{n}\n" for n in range(20)]

        sleeper = await sandbox.commands.run("sleep 1000", background=True)
        assert sleeper.pid in [process.pid for process in await sandbox.commands.list()]
        assert await sandbox.commands.kill(sleeper.pid)
        await failure_of(sleeper.wait(), CommandExitException)
        assert not await sandbox.commands.kill(sleeper.pid)


async def files() -> None:
    async with await AsyncSandbox.create() as sandbox:
        await sandbox.files.write("notes/first.txt", "grüße")
        assert await sandbox.files.read("notes/first.txt") == "grüße"
        await sandbox.files.write_files(
            [{"path": "/home/user/notes/two", "data": b"\0\1"}, {"path": "/tmp/3", "data": "3"}]
        )
        assert bytes(await sandbox.files.read("notes/two", format="bytes")) == b"\0\1"
        content = bytes(range(256)) * 8192
        await sandbox.files.write("big", content)
        stream = await sandbox.files.read("big", format="stream")
        assert b"".join([part async for part in stream]) == content
        info = await sandbox.files.get_info("notes/first.txt")
        assert (info.path, info.size, info.owner) == ("/home/user/notes/first.txt", 7, "user")
        entries = await sandbox.files.list("notes")
        assert [(entry.name, entry.type) for entry in entries] == [("first.txt", FileType.FILE), ("two", FileType.FILE)]
        assert await sandbox.files.make_dir("empty")
        assert not await sandbox.files.make_dir("empty")
        assert (await sandbox.files.rename("notes/two", "empty/moved")).path == "/home/user/empty/moved"
        await sandbox.files.remove("notes")
        assert not await sandbox.files.exists("notes")


async def terminal() -> None:
    async with await AsyncSandbox.create() as sandbox:
        seen = bytearray()
        shell = await sandbox.pty.create(PtySize(rows=24, cols=80), on_data=seen.extend)
        await sandbox.pty.resize(shell.pid, PtySize(rows=30, cols=100))
        await sandbox.pty.send_stdin(shell.pid, b"stty size; tty; exit\n")
        await shell.wait()
        assert b"30 100" in seen
        assert b"/dev/pts/" in seen


async def watch() -> None:
    async with await AsyncSandbox.create() as sandbox:
        await sandbox.files.make_dir("watched/below")
        events: asyncio.Queue[FilesystemEvent] = asyncio.Queue()
        watcher = await sandbox.files.watch_dir("watched", on_event=events.put_nowait, recursive=True)
        await sandbox.files.write("watched/below/new.txt", "new")
        missing = {("below/new.txt", kind) for kind in (FilesystemEventType.CREATE, FilesystemEventType.WRITE)}
        async with asyncio.timeout(30):
            while missing:
                event = await events.get()
                missing.discard((event.name, event.type))
        await watcher.stop()


async def git() -> None:
    async with await AsyncSandbox.create() as sandbox:
        await sandbox.git.init("project", initial_branch="main")
        await sandbox.git.configure_user("Ann", "ann@example.com")
        await sandbox.files.write("project/readme", "hello")
        assert [file.name for file in (await sandbox.git.status("project")).file_status] == ["readme"]
        await sandbox.git.add("project")
        await sandbox.git.commit("project", "First")
        await sandbox.git.create_branch("project", "next")
        branches = await sandbox.git.branches("project")
        assert (sorted(branches.branches), branches.current_branch) == (["main", "next"], "next")
        await sandbox.git.clone("/home/user/project", path="copy")
        assert await sandbox.files.read("copy/readme") == "hello"


async def pause() -> None:
    async with await AsyncSandbox.create() as sandbox:
        process = await sandbox.commands.run("sleep 1000", background=True)
        assert await sandbox.pause()
        assert await is_paused(sandbox)
        assert not await sandbox.pause()
        again = await AsyncSandbox.connect(sandbox.sandbox_id)
        await again.commands.run(f"kill -0 {process.pid}")


async def pause_files() -> None:
    async with await AsyncSandbox.create() as sandbox:
        await sandbox.files.write("kept", "kept")
        await sandbox.commands.run("exec -a forgotten sleep 1000", background=True)
        boot_id = await sandbox.files.read(BOOT_ID)
        await sandbox.pause(keep_memory=False)
        again = await AsyncSandbox.connect(sandbox.sandbox_id)
        assert await again.files.read("kept") == "kept"
        assert await again.files.read(BOOT_ID) != boot_id
        await failure_of(again.commands.run("pgrep -f ^forgotten"), CommandExitException)


async def auto_pause() -> None:
    lifecycle: Any = {"on_timeout": "pause", "auto_resume": True}
    async with await AsyncSandbox.create(timeout=2, lifecycle=lifecycle) as sandbox:
        await sandbox.files.write("kept", "kept")
        await until(lambda: is_paused(sandbox))

        async def is_awake_with_its_file() -> bool:
            return await sandbox.files.read("kept") == "kept" and not await is_paused(sandbox)

        # Again and again: what traffic has woken pauses at its next time-out.
        await until(is_awake_with_its_file)


async def snapshots() -> None:
    async with await AsyncSandbox.create() as sandbox:
        await sandbox.files.write("kept", "before")
        name = new_name("snapshot")
        snapshot = await sandbox.create_snapshot(name=name)
        await sandbox.files.write("kept", "after")
        listed = await AsyncSandbox.list_snapshots(sandbox_id=sandbox.sandbox_id).next_items()
        assert snapshot.snapshot_id in [one.snapshot_id for one in listed]
        for template in (snapshot.snapshot_id, name):
            async with await AsyncSandbox.create(template) as copy:
                assert await copy.files.read("kept") == "before"
        assert await AsyncSandbox.delete_snapshot(snapshot.snapshot_id)
        assert not await AsyncSandbox.delete_snapshot(snapshot.snapshot_id)


async def fork() -> None:
    async with await AsyncSandbox.create(envs={"A": "b"}, metadata={"kind": "source"}) as sandbox:
        await sandbox.files.write("kept", "source")
        made = await sandbox.fork(count=2)
        copies = [copy for copy in made if isinstance(copy, AsyncSandbox)]
        try:
            assert len(copies) == 2, made
            await copies[0].files.write("kept", "first")
            assert await copies[1].files.read("kept") == "source"
            assert (await copies[1].commands.run("echo $A")).stdout == "b\n"
            assert (await copies[1].get_info()).metadata == {"kind": "source"}
        finally:
            for copy in copies:
                await copy.kill()


async def metrics() -> None:
    async with await AsyncSandbox.create() as sandbox:
        await until(sandbox.get_metrics)
        sample = (await sandbox.get_metrics())[-1]
        assert sample.cpu_count >= 1
        assert 0 < sample.mem_used <= sample.mem_total
        assert 0 < sample.disk_used <= sample.disk_total


async def signed_urls() -> None:
    async with await AsyncSandbox.create() as sandbox:
        await sandbox.files.write("report.txt", "report")
        url = sandbox.download_url("report.txt", use_signature_expiration=60)
        assert (await get(url)).text == "report"
        assert (await get(url.replace("report.txt", "other.txt"))).status_code == 401
        url = sandbox.upload_url("/home/user/sent.txt", use_signature_expiration=60)
        async with httpx.AsyncClient(timeout=60) as client:
            (await client.post(url, files={"file": ("sent.txt", b"sent")})).raise_for_status()
        assert await sandbox.files.read("sent.txt") == "sent"
        expired = await get(sandbox.download_url("report.txt", use_signature_expiration=-1))
        assert expired.json() == {"code": 401, "message": "signature is already expired"}


async def network() -> None:
    async with await AsyncSandbox.create(network={"deny_out": [ALL_TRAFFIC]}) as sandbox:
        await failure_of(sandbox.commands.run(f"{FETCH_A_PACKAGE} {ONCE}"), CommandExitException)
        await sandbox.update_network({})
        await sandbox.commands.run(f"{FETCH_A_PACKAGE} {PATIENTLY}", timeout=240)
        await sandbox.update_network({"allow_out": ["nothing.example.com"], "deny_out": [ALL_TRAFFIC]})
        await failure_of(sandbox.commands.run(f"{FETCH_A_PACKAGE} {ONCE}"), CommandExitException)
    async with await AsyncSandbox.create(allow_internet_access=False) as sandbox:
        await failure_of(sandbox.commands.run(f"{FETCH_A_PACKAGE} {ONCE}"), CommandExitException)


async def template() -> None:
    name = new_name("web")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "site").mkdir()
        (Path(folder) / "site" / "index.html").write_text("hello from the template")
        definition = (
            AsyncTemplate(file_context_path=folder)
            .from_base_image()
            .copy("site", "/srv/site")
            .set_envs({"GREETING": "good day"})
            .run_cmd("echo built > ~/built")
            .set_workdir("/srv/site")
            .set_start_cmd("python3 -m http.server 8000", wait_for_port(8000))
        )
        said: list[str] = []
        await AsyncTemplate.build(definition, name, on_build_logs=lambda entry: said.append(entry.message))
    assert said
    async with await AsyncSandbox.create(name) as sandbox:
        result = await sandbox.commands.run("echo $GREETING; pwd; cat ~/built")
        assert result.stdout == "good day\n/srv/site\nbuilt\n"
        page = await sandbox.commands.run("curl --silent --retry 20 --retry-connrefused --retry-delay 1 localhost:8000")
        assert page.stdout == "hello from the template"
    broken = AsyncTemplate().from_base_image().run_cmd("echo on purpose; exit 7")
    assert "exit status 7" in str(await failure_of(AsyncTemplate.build(broken, name), BuildException))


async def template_tags() -> None:
    name = new_name("tagged")
    assert not await AsyncTemplate.exists(name)
    info = await AsyncTemplate.build(AsyncTemplate().from_base_image(), f"{name}:v1")
    assert await AsyncTemplate.exists(name)
    await AsyncTemplate.assign_tags(f"{name}:v1", ["prod"])
    tags = await AsyncTemplate.get_tags(name)
    assert {(tag.tag, tag.build_id) for tag in tags} == {("v1", info.build_id), ("prod", info.build_id)}
    async with await AsyncSandbox.create(f"{name}:prod"):
        await AsyncTemplate.remove_tags(name, "prod")
    await failure_of(AsyncSandbox.create(f"{name}:prod"), SandboxException)


async def volumes() -> None:
    volume = await AsyncVolume.create(new_name("data"))
    try:
        await volume.write_file("input.txt", "from outside")
        async with await AsyncSandbox.create(volume_mounts={"/data": volume}) as sandbox:
            assert await sandbox.files.read("/data/input.txt") == "from outside"
            await sandbox.files.write("/data/output.txt", "from inside")
        async with await AsyncSandbox.create(volume_mounts={"/data": volume}) as sandbox:
            assert await sandbox.files.read("/data/output.txt") == "from inside"
        assert await volume.read_file("output.txt") == "from inside"
    finally:
        assert await AsyncVolume.destroy(volume.volume_id)


async def secrets() -> None:
    name = new_name("secret")
    first = await AsyncSecret.create(name, "value", metadata={"for": "a test"})
    try:
        assert await AsyncSecret.exists(name)
        assert (await AsyncSecret.update(name, "another")).version > first.version
        listed = await AsyncSecret.list().next_items()
        assert first.secret_id in [secret.secret_id for secret in listed]
    finally:
        assert await AsyncSecret.destroy(name)
    assert not await AsyncSecret.exists(name)


async def hosts() -> None:
    async with await AsyncSandbox.create() as sandbox:
        await sandbox.commands.run(SERVE, background=True)
        await until(lambda: is_served(f"https://{sandbox.get_host(8000)}"))
        closed = await get(f"https://{sandbox.get_host(8001)}")
        assert closed.status_code == 502
        assert "port is not open" in closed.json()["message"]


async def private_hosts() -> None:
    async with await AsyncSandbox.create(network={"allow_public_traffic": False}) as sandbox:
        await sandbox.commands.run(SERVE, background=True)
        url = f"https://{sandbox.get_host(8000)}"
        assert (await get(url)).status_code == 403
        token = sandbox.traffic_access_token
        assert token
        await until(lambda: is_served(url, e2b_traffic_access_token=token))


async def ask_for_the_time(url: str, token: str | None) -> str:
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=60) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        result = await client.call_tool("get_current_time", {"timezone": "UTC"})
    return str(result.content)


async def mcp() -> None:
    async with await AsyncSandbox.create(mcp={"time": {}}) as sandbox:
        token = await sandbox.get_mcp_token()
        assert "UTC" in await ask_for_the_time(sandbox.get_mcp_url(), token)
        again = await AsyncSandbox.connect(sandbox.sandbox_id)
        assert await again.get_mcp_token() == token
        assert "UTC" in await ask_for_the_time(again.get_mcp_url(), token)
    unknown: Any = {"no-such-server": {}}
    error = await failure_of(AsyncSandbox.create(mcp=unknown), SandboxException)
    assert "Failed to start MCP gateway" in str(error)


async def mcp_template() -> None:
    name = new_name("servers")
    await AsyncTemplate.build(AsyncTemplate().from_template("mcp-gateway").add_mcp_server(["time"]), name)
    async with await AsyncSandbox.create(name, mcp={"time": {}}) as sandbox:
        assert "UTC" in await ask_for_the_time(sandbox.get_mcp_url(), await sandbox.get_mcp_token())


async def fork_memory() -> None:
    async with await AsyncSandbox.create() as sandbox:
        await sandbox.commands.run("exec -a remembered sleep 1000", background=True)
        (copy,) = await sandbox.fork()
        assert isinstance(copy, AsyncSandbox)
        async with copy:
            await copy.commands.run("pgrep -f ^remembered")


async def header_rules() -> None:
    rules: Any = {"api.example.com": [{"transform": {"headers": {"X-Added": "1"}}}]}
    network: Any = {"allow_out": ["api.example.com"], "deny_out": [ALL_TRAFFIC], "rules": rules}
    await (await AsyncSandbox.create(network=network)).kill()


async def egress_proxy() -> None:
    await (await AsyncSandbox.create(network={"egress_proxy": {"address": "proxy.example.com:1080"}})).kill()


async def https_ports() -> None:
    await (await AsyncSandbox.create(network={"https_ports": [8443]})).kill()


async def identity() -> None:
    iam: Any = {"tokens": {"aws": {"audience": "sts.example.com", "token_type": "JWT-SVID"}}}
    await (await AsyncSandbox.create(iam=iam)).kill()


DOES: dict[str, Callable[[], Awaitable[None]]] = {
    function.__name__: function
    for function in (
        *(
            life,
            timeouts,
            pages,
            commands,
            files,
            terminal,
            watch,
            git,
            pause,
            pause_files,
            auto_pause,
            snapshots,
            fork,
        ),
        *(metrics, signed_urls, network, template, template_tags, volumes, secrets, hosts, private_hosts, mcp),
        *(mcp_template, fork_memory, header_rules, egress_proxy, https_ports, identity),
    )
}


async def main(names: list[str]) -> None:
    for name in names:
        try:
            await DOES[name]()
        except Exception:  # noqa: BLE001 - whatever it is, it is the outcome
            failure = traceback.format_exc()
        else:
            failure = ""
        print(json.dumps({"feature": name, "failure": failure}), flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
