"""A script as a user of E2B's cloud writes it, with the synchronous Python SDK. It knows of no Sandgate: where its
sandboxes run is in its environment. Does what it is asked for by name, and prints an outcome a line, as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import httpx2
from e2b import (
    ALL_TRAFFIC,
    BuildException,
    CommandExitException,
    FilesystemEventType,
    FileType,
    PtySize,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
    Secret,
    Template,
    Volume,
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


def until(is_so: Callable[[], object], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not become so in time"
        time.sleep(0.2)


def failure_of(call: Callable[[], object], kind: type[Failure]) -> Failure:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError("it did not fail")


def life() -> None:
    mark = new_name("mark")
    with Sandbox.create(metadata={"mark": mark, "a b": "c&d"}, envs={"COLOUR": "blue"}, timeout=120) as sandbox:
        assert sandbox.commands.run("echo $COLOUR").stdout == "blue\n"
        info = sandbox.get_info()
        assert info.metadata == {"mark": mark, "a b": "c&d"}
        assert info.state is SandboxState.RUNNING
        assert info.end_at > info.started_at
        query = SandboxQuery(metadata={"mark": mark, "a b": "c&d"}, state=[SandboxState.RUNNING])
        assert [one.sandbox_id for one in Sandbox.list(query=query).next_items()] == [sandbox.sandbox_id]
        other = Sandbox.connect(sandbox.sandbox_id)
        assert other.commands.run("echo $COLOUR").stdout == "blue\n"
        assert sandbox.is_running()
        assert other.kill()
        assert not sandbox.kill()
        assert not sandbox.is_running()
        assert not Sandbox.list(query=query).next_items()
        failure_of(lambda: Sandbox.connect(sandbox.sandbox_id), SandboxNotFoundException)


def timeouts() -> None:
    with Sandbox.create(timeout=60) as sandbox:
        before = sandbox.get_info().end_at
        sandbox.set_timeout(600)
        longer = sandbox.get_info().end_at
        assert longer > before
        Sandbox.connect(sandbox.sandbox_id, timeout=30)
        assert sandbox.get_info().end_at == longer
        sandbox.set_timeout(1)
        until(lambda: not sandbox.is_running())


def pages() -> None:
    mark = new_name("mark")
    made = [Sandbox.create(metadata={"mark": mark}) for _ in range(3)]
    try:
        paginator = Sandbox.list(query=SandboxQuery(metadata={"mark": mark}), limit=2)
        found = []
        while paginator.has_next:
            found += [one.sandbox_id for one in paginator.next_items()]
        assert found == [sandbox.sandbox_id for sandbox in reversed(made)]
    finally:
        for sandbox in made:
            sandbox.kill()


def commands() -> None:
    with Sandbox.create() as sandbox:
        result = sandbox.commands.run("echo out; echo err >&2; pwd", cwd="/tmp", envs={"A": "b"})
        assert (result.stdout, result.stderr, result.exit_code) == ("out\n/tmp\n", "err\n", 0)
        assert sandbox.commands.run("whoami").stdout == "user\n"
        assert sandbox.commands.run("whoami", user="root").stdout == "root\n"
        error = failure_of(lambda: sandbox.commands.run("echo sorry >&2; exit 3"), CommandExitException)
        assert (error.exit_code, error.stderr) == (3, "sorry\n")
        said: list[str] = []
        sandbox.commands.run("for n in 1 2 3; do echo $n; done", on_stdout=said.append)
        assert "".join(said) == "1\n2\n3\n"

        reader = sandbox.commands.run("cat; echo done", background=True, stdin=True)
        sandbox.commands.send_stdin(reader.pid, "hello\n")
        sandbox.commands.close_stdin(reader.pid)
        assert reader.wait().stdout == "hello\ndone\n"

        sleeper = sandbox.commands.run("sleep 1000", background=True)
        assert sleeper.pid in [process.pid for process in sandbox.commands.list()]
        assert sandbox.commands.connect(sleeper.pid).pid == sleeper.pid
        assert sandbox.commands.kill(sleeper.pid)
        failure_of(sleeper.wait, CommandExitException)
        assert not sandbox.commands.kill(sleeper.pid)


def files() -> None:
    with Sandbox.create() as sandbox:
        sandbox.files.write("notes/first.txt", "grüße")
        assert sandbox.files.read("notes/first.txt") == "grüße"
        sandbox.files.write_files([{"path": "/home/user/notes/two", "data": b"\0\1"}, {"path": "/tmp/3", "data": "3"}])
        assert bytes(sandbox.files.read("notes/two", format="bytes")) == b"\0\1"
        content = bytes(range(256)) * 8192
        sandbox.files.write("big", content)
        assert b"".join(sandbox.files.read("big", format="stream")) == content
        info = sandbox.files.get_info("notes/first.txt")
        assert (info.path, info.size, info.owner) == ("/home/user/notes/first.txt", 7, "user")
        assert [(entry.name, entry.type) for entry in sandbox.files.list("notes")] == [
            ("first.txt", FileType.FILE),
            ("two", FileType.FILE),
        ]
        assert sandbox.files.make_dir("empty")
        assert not sandbox.files.make_dir("empty")
        assert sandbox.files.rename("notes/two", "empty/moved").path == "/home/user/empty/moved"
        assert not sandbox.files.exists("notes/two")
        sandbox.files.remove("notes")
        assert not sandbox.files.exists("notes")


def terminal() -> None:
    with Sandbox.create() as sandbox:
        shell = sandbox.pty.create(PtySize(rows=24, cols=80))
        sandbox.pty.resize(shell.pid, PtySize(rows=30, cols=100))
        sandbox.pty.send_stdin(shell.pid, b"stty size; tty; exit\n")
        seen = bytearray()
        shell.wait(on_pty=seen.extend)
        assert b"30 100" in seen
        assert b"/dev/pts/" in seen


def watch() -> None:
    with Sandbox.create() as sandbox:
        sandbox.files.make_dir("watched/below")
        watcher = sandbox.files.watch_dir("watched", recursive=True)
        sandbox.files.write("watched/below/new.txt", "new")
        events = [(event.name, event.type) for event in watcher.get_new_events()]
        assert ("below/new.txt", FilesystemEventType.CREATE) in events
        assert ("below/new.txt", FilesystemEventType.WRITE) in events
        watcher.stop()


def git() -> None:
    with Sandbox.create() as sandbox:
        sandbox.git.init("project", initial_branch="main")
        sandbox.git.configure_user("Ann", "ann@example.com")
        sandbox.files.write("project/readme", "hello")
        assert [file.name for file in sandbox.git.status("project").file_status] == ["readme"]
        sandbox.git.add("project")
        sandbox.git.commit("project", "First")
        sandbox.git.create_branch("project", "next")
        branches = sandbox.git.branches("project")
        assert (sorted(branches.branches), branches.current_branch) == (["main", "next"], "next")
        sandbox.git.clone("/home/user/project", path="copy")
        assert sandbox.files.read("copy/readme") == "hello"


def pause() -> None:
    with Sandbox.create() as sandbox:
        process = sandbox.commands.run("sleep 1000", background=True)
        assert sandbox.pause()
        assert sandbox.get_info().state is SandboxState.PAUSED
        assert not sandbox.pause()
        again = Sandbox.connect(sandbox.sandbox_id)
        again.commands.run(f"kill -0 {process.pid}")
        assert again.get_info().state is SandboxState.RUNNING


def pause_files() -> None:
    with Sandbox.create() as sandbox:
        sandbox.files.write("kept", "kept")
        sandbox.commands.run("exec -a forgotten sleep 1000", background=True)
        boot_id = sandbox.files.read(BOOT_ID)
        sandbox.pause(keep_memory=False)
        again = Sandbox.connect(sandbox.sandbox_id)
        assert again.files.read("kept") == "kept"
        assert again.files.read(BOOT_ID) != boot_id
        failure_of(lambda: again.commands.run("pgrep -f ^forgotten"), CommandExitException)


def auto_pause() -> None:
    with Sandbox.create(timeout=2, lifecycle={"on_timeout": "pause", "auto_resume": True}) as sandbox:
        sandbox.files.write("kept", "kept")
        until(lambda: sandbox.get_info().state is SandboxState.PAUSED)
        # Again and again: what traffic has woken pauses at its next time-out.
        until(lambda: sandbox.files.read("kept") == "kept" and sandbox.get_info().state is SandboxState.RUNNING)


def snapshots() -> None:
    with Sandbox.create() as sandbox:
        sandbox.files.write("kept", "before")
        name = new_name("snapshot")
        snapshot = sandbox.create_snapshot(name=name)
        sandbox.files.write("kept", "after")
        assert any(name in one for one in snapshot.names)
        assert snapshot.snapshot_id in [
            one.snapshot_id for one in Sandbox.list_snapshots(sandbox_id=sandbox.sandbox_id).next_items()
        ]
        for template in (snapshot.snapshot_id, name):
            with Sandbox.create(template) as copy:
                assert copy.files.read("kept") == "before"
        assert Sandbox.delete_snapshot(snapshot.snapshot_id)
        assert not Sandbox.delete_snapshot(snapshot.snapshot_id)


def fork() -> None:
    with Sandbox.create(envs={"A": "b"}, metadata={"kind": "source"}) as sandbox:
        sandbox.files.write("kept", "source")
        made = sandbox.fork(count=2)
        copies = [copy for copy in made if isinstance(copy, Sandbox)]
        try:
            assert len(copies) == 2, made
            copies[0].files.write("kept", "first")
            assert copies[1].files.read("kept") == "source"
            assert copies[1].commands.run("echo $A").stdout == "b\n"
            assert copies[1].get_info().metadata == {"kind": "source"}
        finally:
            for copy in copies:
                copy.kill()


def metrics() -> None:
    with Sandbox.create() as sandbox:
        until(sandbox.get_metrics)
        sample = sandbox.get_metrics()[-1]
        assert sample.cpu_count >= 1
        assert 0 < sample.mem_used <= sample.mem_total
        assert 0 < sample.disk_used <= sample.disk_total


def signed_urls() -> None:
    with Sandbox.create() as sandbox:
        sandbox.files.write("report.txt", "report")
        url = sandbox.download_url("report.txt", use_signature_expiration=60)
        assert httpx.get(url, timeout=60).text == "report"
        assert httpx.get(url.replace("report.txt", "other.txt"), timeout=60).status_code == 401
        url = sandbox.upload_url("/home/user/sent.txt", use_signature_expiration=60)
        httpx.post(url, files={"file": ("sent.txt", b"sent")}, timeout=60).raise_for_status()
        assert sandbox.files.read("sent.txt") == "sent"
        expired = httpx.get(sandbox.download_url("report.txt", use_signature_expiration=-1), timeout=60)
        assert expired.json() == {"code": 401, "message": "signature is already expired"}


def network() -> None:
    with Sandbox.create(network={"deny_out": [ALL_TRAFFIC]}) as sandbox:
        failure_of(lambda: sandbox.commands.run(f"{FETCH_A_PACKAGE} {ONCE}"), CommandExitException)
        sandbox.update_network({})
        sandbox.commands.run(f"{FETCH_A_PACKAGE} {PATIENTLY}", timeout=240)
        sandbox.update_network({"allow_out": ["nothing.example.com"], "deny_out": [ALL_TRAFFIC]})
        failure_of(lambda: sandbox.commands.run(f"{FETCH_A_PACKAGE} {ONCE}"), CommandExitException)
    with Sandbox.create(allow_internet_access=False) as sandbox:
        failure_of(lambda: sandbox.commands.run(f"{FETCH_A_PACKAGE} {ONCE}"), CommandExitException)


def template() -> None:
    name = new_name("web")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "site").mkdir()
        (Path(folder) / "site" / "index.html").write_text("hello from the template")
        definition = (
            Template(file_context_path=folder)
            .from_base_image()
            .copy("site", "/srv/site")
            .set_envs({"GREETING": "good day"})
            .run_cmd("echo built > ~/built")
            .set_workdir("/srv/site")
            .set_start_cmd("python3 -m http.server 8000", wait_for_port(8000))
        )
        said: list[str] = []
        Template.build(definition, name, on_build_logs=lambda entry: said.append(entry.message))
    assert said
    with Sandbox.create(name) as sandbox:
        assert sandbox.commands.run("echo $GREETING; pwd; cat ~/built").stdout == "good day\n/srv/site\nbuilt\n"
        page = sandbox.commands.run("curl --silent --retry 20 --retry-connrefused --retry-delay 1 localhost:8000")
        assert page.stdout == "hello from the template"
    broken = Template().from_base_image().run_cmd("echo on purpose; exit 7")
    assert "exit status 7" in str(failure_of(lambda: Template.build(broken, name), BuildException))


def template_tags() -> None:
    name = new_name("tagged")
    assert not Template.exists(name)
    info = Template.build(Template().from_base_image(), f"{name}:v1")
    assert Template.exists(name)
    Template.assign_tags(f"{name}:v1", ["prod"])
    assert {(tag.tag, tag.build_id) for tag in Template.get_tags(name)} == {
        ("v1", info.build_id),
        ("prod", info.build_id),
    }
    with Sandbox.create(f"{name}:prod"):
        Template.remove_tags(name, "prod")
    failure_of(lambda: Sandbox.create(f"{name}:prod"), SandboxException)


def volumes() -> None:
    volume = Volume.create(new_name("data"))
    try:
        volume.write_file("input.txt", "from outside")
        with Sandbox.create(volume_mounts={"/data": volume}) as sandbox:
            assert sandbox.files.read("/data/input.txt") == "from outside"
            sandbox.files.write("/data/output.txt", "from inside")
        with Sandbox.create(volume_mounts={"/data": volume}) as sandbox:
            assert sandbox.files.read("/data/output.txt") == "from inside"
        assert volume.read_file("output.txt") == "from inside"
    finally:
        assert Volume.destroy(volume.volume_id)


def secrets() -> None:
    name = new_name("secret")
    first = Secret.create(name, "value", metadata={"for": "a test"})
    try:
        assert Secret.exists(name)
        assert Secret.update(name, "another").version > first.version
        assert first.secret_id in [secret.secret_id for secret in Secret.list().next_items()]
    finally:
        assert Secret.destroy(name)
    assert not Secret.exists(name)


def hosts() -> None:
    with Sandbox.create() as sandbox:
        sandbox.commands.run(SERVE, background=True)
        url = f"https://{sandbox.get_host(8000)}"
        until(lambda: httpx.get(url, timeout=60).status_code == 200)
        closed = httpx.get(f"https://{sandbox.get_host(8001)}", timeout=60)
        assert closed.status_code == 502
        assert "port is not open" in closed.json()["message"]


def private_hosts() -> None:
    with Sandbox.create(network={"allow_public_traffic": False}) as sandbox:
        sandbox.commands.run(SERVE, background=True)
        url = f"https://{sandbox.get_host(8000)}"
        assert httpx.get(url, timeout=60).status_code == 403
        assert sandbox.traffic_access_token
        token = {"e2b-traffic-access-token": sandbox.traffic_access_token}
        until(lambda: httpx.get(url, headers=token, timeout=60).status_code == 200)


async def _ask_for_the_time(url: str, token: str) -> str:
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=60) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        result = await client.call_tool("get_current_time", {"timezone": "UTC"})
    return str(result.content)


def mcp() -> None:
    with Sandbox.create(mcp={"time": {}}) as sandbox:
        token = sandbox.get_mcp_token()
        assert token
        assert "UTC" in asyncio.run(_ask_for_the_time(sandbox.get_mcp_url(), token))
        again = Sandbox.connect(sandbox.sandbox_id)
        assert again.get_mcp_token() == token
        assert "UTC" in asyncio.run(_ask_for_the_time(again.get_mcp_url(), token))
    unknown: Any = {"no-such-server": {}}
    assert "Failed to start MCP gateway" in str(failure_of(lambda: Sandbox.create(mcp=unknown), SandboxException))


def mcp_template() -> None:
    name = new_name("servers")
    Template.build(Template().from_template("mcp-gateway").add_mcp_server(["time"]), name)
    with Sandbox.create(name, mcp={"time": {}}) as sandbox:
        token = sandbox.get_mcp_token()
        assert token
        assert "UTC" in asyncio.run(_ask_for_the_time(sandbox.get_mcp_url(), token))


def fork_memory() -> None:
    with Sandbox.create() as sandbox:
        sandbox.commands.run("exec -a remembered sleep 1000", background=True)
        (copy,) = sandbox.fork()
        assert isinstance(copy, Sandbox)
        with copy:
            copy.commands.run("pgrep -f ^remembered")


def header_rules() -> None:
    rules: Any = {"api.example.com": [{"transform": {"headers": {"X-Added": "1"}}}]}
    Sandbox.create(network={"allow_out": ["api.example.com"], "deny_out": [ALL_TRAFFIC], "rules": rules}).kill()


def egress_proxy() -> None:
    Sandbox.create(network={"egress_proxy": {"address": "proxy.example.com:1080"}}).kill()


def https_ports() -> None:
    Sandbox.create(network={"https_ports": [8443]}).kill()


def identity() -> None:
    Sandbox.create(iam={"tokens": {"aws": {"audience": "sts.example.com", "token_type": "JWT-SVID"}}}).kill()


DOES: dict[str, Callable[[], None]] = {
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


def main(names: list[str]) -> None:
    for name in names:
        try:
            DOES[name]()
        except Exception:  # noqa: BLE001 - whatever it is, it is the outcome
            failure = traceback.format_exc()
        else:
            failure = ""
        print(json.dumps({"feature": name, "failure": failure}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
