"""Templates as users build them: the real Python SDK, a server of its own, real containers."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
from docker.models.containers import Container
from e2b import BuildException, BuildInfo, LogEntry, PtySize, Sandbox, Template, wait_for_timeout
from e2b.template.main import TemplateClass

from app.engines.debian_base import debian_base
from app.engines.images import image_tags
from app.settings import ROOT, Settings
from tests.e2e.installation import Installation, call, mcp_client, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.e2e]

DEBIAN = "sandgate-test/plain-debian:1"
BUSYBOX = "sandgate-test/only-busybox"


@pytest.fixture(scope="module")
def foreign_images() -> Iterator[tuple[str, str]]:
    """Debian as it comes, and a file system with nothing in it but a static busybox: no C library, no bash.

    The second stays for later runs: making it takes Debian's archive.
    """
    client = docker.from_env()
    settings = Settings()
    plain = debian_base(client, settings.base_image, lambda line: None)
    client.images.get(plain).tag(*DEBIAN.split(":"))
    tags = image_tags(ROOT / "sandbox_images", base_image=settings.base_image, ca_bundle=settings.ca_bundle)
    of_base = tags.base.rpartition(":")[2]
    if not client.api.images(name=f"{BUSYBOX}:{of_base}"):
        client.api.import_image_from_data(_busybox_root(client, tags.base), BUSYBOX, of_base)
    yield DEBIAN, f"{BUSYBOX}:{of_base}"
    client.images.remove(DEBIAN)
    client.close()


def _busybox_root(client: docker.DockerClient, base: str) -> bytes:
    """A root file system as a tar."""
    get = "apt-get -qq -o Acquire::Retries=3"
    install = f"{get} update && {get} install --yes --no-install-recommends busybox-static >/dev/null"
    container = client.containers.create(base, ["sh", "-ec", f"{install}; busybox --list > /applets"])
    try:
        container.start()
        assert container.wait(timeout=240)["StatusCode"] == 0, container.logs().decode()
        program = _file_of(container, "/bin/busybox")
        applets = _file_of(container, "/applets").decode().split()
    finally:
        container.remove(force=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content, mode in (
            ("bin/busybox", program, 0o755),
            ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644),
            ("etc/group", b"root:x:0:\n", 0o644),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
        for name in applets:
            if name != "busybox":
                entry = tarfile.TarInfo(f"bin/{name}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
        for name, mode in (("tmp", 0o1777), ("root", 0o700)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
    return packed.getvalue()


def _file_of(container: Container, path: str) -> bytes:
    chunks, stat = container.get_archive(path)
    assert stat is not None
    if stat["linkTarget"]:
        return _file_of(container, os.path.join(os.path.dirname(path), stat["linkTarget"]))
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        member = tar.extractfile(tar.getmembers()[0])
        assert member is not None
        return member.read()


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory, foreign_images: tuple[str, str]) -> Iterator[Installation]:
    debian, busybox = foreign_images
    installation = Installation(
        tmp_path_factory.mktemp("templates"),
        {"SANDGATE_IMAGE_ALIASES": f"ubuntu:22.04={debian},alpine:3={busybox}", "SANDGATE_POOL": "base=0"},
    )
    installation.start()
    yield installation
    for sandbox_id in installation.sandboxes():
        installation.delete(sandbox_id)
    with installation.http() as http:
        for template in http.get("/templates").json():
            if not template["isDefault"]:
                answer = http.delete(f"/templates/{template['templateID']}")
                assert answer.status_code == 204, answer.text
    installation.stop()
    installation.remove()
    installation.remove_images()


@pytest.fixture
def own_gate(tmp_path: Path) -> Iterator[Installation]:
    """For a test that kills the server."""
    installation = Installation(tmp_path / "home", {"SANDGATE_POOL": "base=0"})
    yield installation
    installation.remove()
    installation.remove_images()


def options(gate: Installation) -> dict[str, Any]:
    return {"api_key": gate.key, "api_url": gate.url, "sandbox_url": gate.url}


def build(gate: Installation, template: TemplateClass, name: str, **more: Any) -> tuple[BuildInfo, list[str]]:
    """The SDK's answer, and what the log says."""
    said: list[str] = []

    def listen(entry: LogEntry) -> None:
        said.append(entry.message)

    return Template.build(template, name, on_build_logs=listen, **options(gate), **more), said


def create(gate: Installation, template: str, **more: Any) -> Sandbox:
    return Sandbox.create(template, timeout=120, **options(gate), **more)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A folder with files of many kinds."""
    folder = tmp_path / "context"
    (folder / "src" / "deep").mkdir(parents=True)
    (folder / "src" / "a.txt").write_text("a")
    (folder / "src" / "deep" / "b.txt").write_text("b")
    (folder / "src" / "link").symlink_to("a.txt")
    (folder / "src" / "dangling").symlink_to("nowhere")
    (folder / "src" / "ignored.log").write_text("not wanted")
    (folder / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (folder / "one.txt").write_text("one")
    (folder / ".dockerignore").write_text("**/*.log\n")
    return folder


def test_a_template_with_files_environment_user_and_start_command(gate: Installation, context: Path) -> None:
    template = (
        Template(file_context_path=str(context))
        .from_base_image()
        .copy("src/*", "app")
        .set_envs({"GREETING": "hello $LANG"})
        .run_cmd('test "$(cat app/deep/b.txt)" = b && test "$GREETING" = \'hello C.UTF-8\' && whoami')
        .run_cmd('test "$(whoami)" = root', user="root")
        .set_workdir("/srv/work")
        .set_start_cmd("echo started", wait_for_timeout(100))
    )
    info, said = build(gate, template, "full:v1", tags=["default"], cpu_count=1, memory_mb=768)
    assert sorted(info.tags) == ["default", "v1"]
    assert "user" in said
    assert "started" in said

    sandbox = create(gate, "full:v1")
    result = sandbox.commands.run("pwd; whoami; echo $GREETING; ls -A ~/app; stat -c %U ~/app/a.txt .")
    assert result.stdout.split() == [
        *("/srv/work", "user", "hello", "C.UTF-8"),
        *("a.txt", "dangling", "deep", "link"),
        *("user", "user"),
    ]
    assert sandbox.files.read("/home/user/app/link") == "a"
    with gate.http() as http:
        assert http.delete(f"/templates/{info.template_id}").status_code == 400
    sandbox.kill()


def test_copy_does_as_dockers_copy(gate: Installation, context: Path) -> None:
    template = (
        Template(file_context_path=str(context))
        .from_base_image()
        .run_cmd("mkdir -p target/deep && echo old > target/deep/kept && ln -s /etc/hostname target/a.txt")
        .copy("src", "target")
        .copy("one.txt", "renamed.txt")
        .copy("one.txt", "into/")
        .copy("one.txt", "target")
        .copy("run.sh", "/usr/local/bin/ran", user="root", mode=0o755)
        .copy("src/link", "resolved", resolve_symlinks=True)
        .run_cmd(
            "set -e; cat target/deep/kept target/deep/b.txt; test ! -L target/a.txt; cat target/a.txt;"
            " test ! -e target/ignored.log; cat renamed.txt into/one.txt target/one.txt; ran;"
            " stat -c '%U %a' /usr/local/bin/ran; test ! -L resolved; stat -c %U into into/one.txt"
        )
    )
    _, said = build(gate, template, "copies")
    printed = "\n".join(said[said.index(next(line for line in said if line.startswith("[8/8]"))) + 1 :])
    assert printed.splitlines()[:6] == ["old", "baoneoneoneran", "root 755", "user", "user", "Build finished."]


@pytest.mark.parametrize(
    ("image", "name", "becomes_root"), [("ubuntu:22.04", "from-debian", True), ("alpine:3", "from-busybox", False)]
)
def test_any_linux_image_becomes_a_sandbox(
    gate: Installation, context: Path, image: str, name: str, becomes_root: bool
) -> None:
    template = (
        Template(file_context_path=str(context))
        .from_image(image)
        .copy("src/a.txt", "a.txt")
        .run_cmd("cat a.txt; id -un")
        .set_user("ann")
        .run_cmd("id -un; pwd")
    )
    _, said = build(gate, template, name)
    assert said[-4:-2] == ["ann", "/home/user"]

    sandbox = create(gate, name)
    assert sandbox.commands.run("id -un").stdout == "ann\n"
    assert sandbox.commands.run("cat /home/user/a.txt", user="user").stdout == "a"
    sandbox.files.write("/home/user/x/y", "written", user="user")
    assert [entry.name for entry in sandbox.files.list("/home/user/x")] == ["y"]
    assert sandbox.commands.run("id -u", user="root").stdout == "0\n"
    for program in ("ss -Htuln", "pgrep -f sandgate_agent", "curl --silent localhost:49983/health"):
        sandbox.commands.run(program)  # what wait_for_port, wait_for_process and wait_for_url of the SDKs run
    if becomes_root:
        assert sandbox.commands.run("sudo id -u", user="user").stdout == "0\n"
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    seen = bytearray()
    sandbox.pty.send_stdin(terminal.pid, b"echo $((6*7)); exit\n")
    terminal.wait(on_pty=seen.extend)
    assert b"42" in seen
    sandbox.kill()


def test_steps_are_taken_from_the_cache_unless_they_are_forced(gate: Installation) -> None:
    template = Template().from_base_image().run_cmd("date +%N > ~/when; cat ~/when")
    _, first = build(gate, template, "cached")
    _, second = build(gate, template, "cached")
    _, forced = build(gate, template, "cached", skip_cache=True)
    assert "taken from the cache" not in first
    assert "taken from the cache" in second
    assert "taken from the cache" not in forced


def test_a_failed_step_is_told_with_the_line_that_asked_for_it(gate: Installation) -> None:
    template = Template().from_base_image()
    template = template.run_cmd("echo fine")
    template = template.run_cmd("echo about to fail; exit 3")
    with pytest.raises(BuildException) as caught:
        build(gate, template, "fails")
    assert str(caught.value) == "failed to run command 'echo about to fail; exit 3': command failed: exit status 3"
    lines = [frame.lineno for frame in caught.traceback if Path(str(frame.path)) == Path(__file__)]
    asked = next(
        n for n, line in enumerate(Path(__file__).read_text().splitlines()) if 'about to fail; exit 3")' in line
    )
    assert asked in lines
    assert not create_fails_with(gate, "fails").startswith("5")


def create_fails_with(gate: Installation, template: str) -> str:
    with gate.http() as http:
        answer = http.post("/v2/sandboxes", json={"templateID": template})
    assert answer.status_code == answer.json()["code"]
    return str(answer.status_code)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            Template().from_base_image().run_cmd("whoami", user="root123"),
            "failed to run command 'whoami': command failed: unauthenticated: invalid username: 'root123'",
        ),
        (Template().from_base_image().set_user("; exit 1"), "invalid username: '; exit 1'"),
        (Template().from_base_image().set_user("root").set_workdir("/etc/passwd"), "/etc/passwd is not a directory"),
        (Template().from_template("absent"), "There is no template 'absent'"),
        (Template().from_image("registry.invalid/absent:1"), "cannot be pulled"),
        (
            Template().from_base_image().set_start_cmd("./absent", wait_for_timeout(100)),
            "the start command ended with exit code 127",
        ),
        (Template().from_image("sandgate/gateway:1"), "Sandgate's own"),
    ],
)
def test_what_cannot_be_built_is_said_in_words(gate: Installation, template: TemplateClass, text: str) -> None:
    with pytest.raises(BuildException) as caught:
        build(gate, template, "fails")
    assert text in str(caught.value)


def test_names_and_tags(gate: Installation) -> None:
    assert Template.exists("base", **options(gate))
    assert not Template.exists("absent", **options(gate))
    info, _ = build(gate, Template().from_base_image(), "tagged:v1")
    assert Template.alias_exists("tagged", **options(gate))
    assigned = Template.assign_tags("tagged:v1", ["prod", "latest"], **options(gate))
    assert (assigned.build_id, assigned.tags) == (info.build_id, ["prod", "latest"])
    Template.remove_tags("tagged", "prod", **options(gate))
    assert {tag.tag for tag in Template.get_tags("tagged", **options(gate))} == {"v1", "latest"}
    create(gate, "tagged:latest").kill()


def test_a_build_in_the_background_is_asked_after(gate: Installation) -> None:
    info = Template.build_in_background(Template().from_base_image().run_cmd("sleep 8"), "later", **options(gate))

    def is_ready() -> bool:
        return bool(Template.get_build_status(info, **options(gate)).status == "ready")

    assert not is_ready()
    wait_until(is_ready, lambda: Template.get_build_status(info, **options(gate)))


def test_a_template_with_mcp_servers_starts_with_a_gateway(gate: Installation) -> None:
    template = Template().from_template("mcp-gateway").add_mcp_server(["time", "git"]).run_cmd("echo kept > ~/kept")
    build(gate, template, "with-servers")
    sandbox = gate.create(templateID="with-servers", mcp={"time": {}})

    async def ask() -> str:
        async with mcp_client(sandbox) as client:
            return await call(client, "get_current_time", timezone="UTC")

    assert "UTC" in asyncio.run(ask())
    assert gate.sdk(sandbox["sandboxID"]).files.read("/home/user/kept") == "kept\n"
    gate.delete(sandbox["sandboxID"])


def test_a_server_that_is_killed_in_a_build_fails_it_at_its_next_start(own_gate: Installation) -> None:
    own_gate.start()
    info = Template.build_in_background(
        Template().from_base_image().run_cmd("sleep 300"), "cut-off", **options(own_gate)
    )
    wait_until(lambda: step_containers(own_gate) != [], own_gate.log.read_text)
    own_gate.kill()
    assert step_containers(own_gate) != []
    own_gate.start()
    status = Template.get_build_status(info, **options(own_gate))
    assert status.status == "error"
    assert status.reason is not None
    assert "stopped while the template was being built" in status.reason.message
    wait_until(lambda: step_containers(own_gate) == [], lambda: step_containers(own_gate))
    own_gate.stop()


def test_a_server_that_is_stopped_in_a_build_leaves_no_container(own_gate: Installation) -> None:
    own_gate.start()
    Template.build_in_background(Template().from_base_image().run_cmd("sleep 300"), "cut-off", **options(own_gate))
    wait_until(lambda: step_containers(own_gate) != [], own_gate.log.read_text)
    own_gate.stop()
    assert step_containers(own_gate) == []


def step_containers(gate: Installation) -> list[str]:
    prefix = f"/sandgate-build-{(gate.home / 'installation').read_text()}-"
    client = docker.APIClient()
    try:
        names = [name for item in client.containers(all=True) for name in item["Names"]]
    finally:
        client.close()
    return [name for name in names if name.startswith(prefix)]


def test_two_builds_at_once_do_not_disturb_each_other(gate: Installation) -> None:
    outcomes: dict[str, BuildInfo] = {}

    def work(name: str) -> None:
        template = Template().from_base_image().run_cmd(f"echo {name} > ~/name").skip_cache()
        outcomes[name] = Template.build(template, name, **options(gate))

    threads = [threading.Thread(target=work, args=(f"side-{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert sorted(outcomes) == ["side-0", "side-1", "side-2"]
    assert len({info.build_id for info in outcomes.values()}) == 3


def test_uploaded_files_need_the_address_that_was_given_out(gate: Installation) -> None:
    with gate.http() as http:
        asked = http.post("/v3/templates", json={"name": "uploads"}).json()
        link = http.get(f"/templates/{asked['templateID']}/files/{'a' * 64}").json()
    url = str(link["url"])
    assert url.startswith(gate.url)
    assert httpx.put(url.replace("a" * 64, "b" * 64), content=b"x", trust_env=False, timeout=60).status_code == 401
    assert httpx.put(url, content=b"not a tar", trust_env=False, timeout=60).status_code == 400
