"""The sandbox images on a real engine: what is rebuilt when, what a failed build says, and what is inside."""

from __future__ import annotations

import queue
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest
from docker.errors import ImageNotFound

from app.engines.images import BuildProgress, ImageBuilder, ImageBuildError, ImageTags
from app.errors import EngineError
from app.settings import ROOT, Settings
from tests.container_runs import run_in_container

pytestmark = pytest.mark.docker

BOUND_S = 120


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="module")
def images(client: docker.DockerClient) -> ImageTags:
    settings = Settings()
    return ImageBuilder(
        client, ROOT / "sandbox_images", base_image=settings.base_image, ca_bundle=settings.ca_bundle
    ).build(lambda progress: None)


class TinyImages:
    """Three images that take no time to build, in sources of their own on top of the real base."""

    def __init__(self, client: docker.DockerClient, source: Path, base_image: str) -> None:
        self.source = source
        self._client = client
        self._label = f"sandgate.test={source.name}"
        self._base_image = base_image
        self._builder = ImageBuilder(client, source, base_image=base_image, ca_bundle=None)
        self._made: set[str] = set()
        for folder in ("base", "workspace", "gateway", "stdio_bridge"):
            (source / folder).mkdir()
        for image in ("base", "workspace", "gateway"):
            (source / image / "content").write_text(f"{image} of {source}")
            self.set_dockerfile(image, f"COPY {image}/content /{image}-content")

    def set_dockerfile(self, image: str, *steps: str) -> None:
        lines = ("ARG FROM_IMAGE", "FROM $FROM_IMAGE", f"LABEL {self._label}", *steps)
        (self.source / image / "Dockerfile").write_text("\n".join(lines) + "\n")

    def missing(self) -> list[str]:
        return self._builder.missing()

    def build(self, report: Callable[[BuildProgress], None] = lambda _: None) -> tuple[ImageTags, set[str]]:
        """The tags, and which images were built for them."""
        self._made.update(self._builder.missing())
        built: set[str] = set()

        def note(progress: BuildProgress) -> None:
            built.add(progress.image)
            report(progress)

        return self._builder.build(note), built

    @contextmanager
    def another_builder(self) -> Iterator[ImageBuilder]:
        client = docker.from_env()
        try:
            yield ImageBuilder(client, self.source, base_image=self._base_image, ca_bundle=None)
        finally:
            client.close()

    def remove(self) -> None:
        """Also what a failed build left to go on from; the label is in the first step for that."""
        for tag in sorted(self._made, key=lambda tag: tag.startswith("sandgate/base")):
            try:
                self._client.images.remove(tag)
            except ImageNotFound:
                continue
        self._client.images.prune(filters={"dangling": True, "label": self._label})


@pytest.fixture
def tiny(client: docker.DockerClient, images: ImageTags, tmp_path: Path) -> Iterator[TinyImages]:
    tiny = TinyImages(client, tmp_path, images.base)
    yield tiny
    tiny.remove()


def test_a_change_builds_its_image_and_what_stands_on_it_and_nothing_else(tiny: TinyImages) -> None:
    first, built = tiny.build()
    assert built == {"base", "workspace", "gateway"}
    assert tiny.missing() == []
    assert tiny.build() == (first, set())

    (tiny.source / "stdio_bridge" / "stdio_bridge.c").write_text("changed")
    second, built = tiny.build()
    assert built == {"gateway"}
    assert (second.base, second.workspace) == (first.base, first.workspace)

    (tiny.source / "base" / "more").write_text("changed")
    third, built = tiny.build()
    assert built == {"base", "workspace", "gateway"}
    assert not {third.base, third.workspace, third.gateway} & {second.base, second.workspace, second.gateway}


def test_images_are_made_of_the_files_that_gave_the_tags(client: docker.DockerClient, tiny: TinyImages) -> None:
    tags, _ = tiny.build()
    for image in ("base", "workspace", "gateway"):
        assert run_in_container(client, getattr(tags, image), "cat", f"/{image}-content") == f"{image} of {tiny.source}"


def test_a_failed_build_tells_image_step_and_last_output_and_leaves_no_tag(
    client: docker.DockerClient, tiny: TinyImages
) -> None:
    tiny.set_dockerfile("gateway", "RUN echo nothing wrong yet", "RUN echo the compiler is missing >&2; exit 3")
    with pytest.raises(ImageBuildError) as failed:
        tiny.build()
    [gateway] = tiny.missing()
    assert failed.value.tag == gateway
    lines = str(failed.value).splitlines()
    assert lines[0].startswith(f"Image {gateway} could not be built. Step 5 of 6, RUN echo the compiler is missing")
    assert "returned a non-zero code: 3" in lines[0]
    assert any("the compiler is missing" in line for line in lines[1:])
    assert not any("nothing wrong yet" in line for line in lines)


def test_a_dockerfile_that_cannot_be_read_is_an_error_about_its_image(tiny: TinyImages) -> None:
    tiny.set_dockerfile("base", "FLY to the moon")
    with pytest.raises(EngineError, match=r"sandgate/base:[0-9a-f]{12}.*FLY"):
        tiny.build()


def test_of_two_builders_of_the_same_sources_one_waits_and_then_has_nothing_to_do(tiny: TinyImages) -> None:
    seen_by_second: queue.Queue[BuildProgress] = queue.Queue()
    with ThreadPoolExecutor(1) as threads, tiny.another_builder() as second:
        started: list[Future[ImageTags]] = []

        def report(_: BuildProgress) -> None:
            if not started:
                started.append(threads.submit(second.build, seen_by_second.put))
                assert "another build" in seen_by_second.get(timeout=30).line

        first_tags, built = tiny.build(report)
        second_tags = started[0].result(timeout=60)
    assert built == {"base", "workspace", "gateway"}
    assert second_tags == first_tags
    assert all(progress.steps == 0 for progress in seen_by_second.queue)


BUILD = """
import signal, sys, docker
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
from pathlib import Path
from app.engines.images import ImageBuilder
builder = ImageBuilder(docker.from_env(), Path(sys.argv[1]), base_image=sys.argv[2], ca_bundle=None)
builder.build(lambda progress: print(progress.line, flush=True))
"""


def test_an_interrupted_build_ends_on_the_engine_too_and_leaves_no_tag(
    client: docker.DockerClient, images: ImageTags, tiny: TinyImages
) -> None:
    tiny.build()
    tiny.set_dockerfile("gateway", f"RUN echo begun && sleep 600 && echo {tiny.source}")
    with subprocess.Popen(
        [sys.executable, "-c", BUILD, tiny.source, images.base], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as building:
        try:
            assert building.stdout is not None
            assert "begun\n" in building.stdout
            _wait_until(lambda: _builds(client, tiny.source) == 1, "the engine lists the step's container")
            building.send_signal(signal.SIGINT)
            building.communicate(timeout=BOUND_S)
        finally:
            building.kill()
    assert [tag.partition(":")[0] for tag in tiny.missing()] == ["sandgate/gateway"]
    _wait_until(lambda: _builds(client, tiny.source) == 0, "the engine has given up the step")


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < give_up_at, f"timed out waiting until {what}"
        time.sleep(0.1)


def _builds(client: docker.DockerClient, source: Path) -> int:
    """How many build containers run a step that names `source`."""
    return sum(str(source) in found["Command"] for found in client.api.containers())


@pytest.mark.parametrize("image", ["workspace", "gateway"])
def test_the_promised_tools_are_there(client: docker.DockerClient, images: ImageTags, image: str) -> None:
    script = (
        "python --version; node --version; uv --version; id user;"
        "for command in npm npx uvx pip git curl ps; do $command --version > /dev/null && echo has $command; done"
    )
    lines = run_in_container(client, getattr(images, image), "bash", "-c", script, user="user").splitlines()
    assert lines[0].startswith("Python 3.13.")
    assert lines[1].startswith("v24.")
    assert lines[2].startswith("uv 0.")
    assert lines[3].startswith("uid=1000(user) gid=1000(user)")
    assert lines[4:] == [f"has {command}" for command in ("npm", "npx", "uvx", "pip", "git", "curl", "ps")]


def test_user_is_root_by_sudo_in_the_workspace_and_keeps_the_certificates(
    client: docker.DockerClient, images: ImageTags
) -> None:
    script = "sudo -n id --user; sudo -n printenv NODE_EXTRA_CA_CERTS"
    assert run_in_container(client, images.workspace, "bash", "-c", script, user="user").splitlines() == [
        "0",
        "/etc/ssl/certs/ca-certificates.crt",
    ]


def test_the_workspace_compiles_extensions(client: docker.DockerClient, images: ImageTags) -> None:
    script = (
        "cd $(mktemp --directory) && echo '#include <Python.h>' > try.c && cc $(python3-config --includes) -c try.c "
        "&& echo '#include <node.h>' > try.cc "
        "&& c++ -std=c++20 -I$npm_package_config_node_gyp_nodedir/include/node -c try.cc && ls"
    )
    assert run_in_container(client, images.workspace, "bash", "-c", script, user="user").split() == [
        "try.c",
        "try.cc",
        "try.o",
    ]


def test_the_workspace_lets_its_user_install_packages_without_sudo(
    client: docker.DockerClient, images: ImageTags
) -> None:
    script = """
import json, subprocess, sys, zipfile
pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index"]
with zipfile.ZipFile("/tmp/probe-1-py3-none-any.whl", "w") as wheel:
    wheel.writestr("probe.py", "")
    wheel.writestr("probe-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: probe\\nVersion: 1\\n")
    wheel.writestr("probe-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr("probe-1.dist-info/RECORD", "")
with open("/code/package.json", "w") as package, open("/code/probe.js", "w") as program:
    json.dump({"name": "probe", "version": "1.0.0", "bin": {"probe": "probe.js"}}, package)
    program.write("#!/usr/bin/env node\\nconsole.log('probe runs')\\n")
subprocess.run([*pip, "/tmp/probe-1-py3-none-any.whl"], check=True)
subprocess.run(["npm", "install", "--global", "--offline", "--silent", "/code"], check=True, stdout=sys.stderr)
subprocess.run([sys.executable, "-c", "import probe; print(probe.__file__)"], check=True)
subprocess.run(["probe"], check=True)
"""
    assert run_in_container(client, images.workspace, "python", "-c", script, user="user").splitlines() == [
        "/usr/local/lib/python3.13/dist-packages/probe.py",
        "probe runs",
    ]


@pytest.mark.parametrize("command", ["sudo", "cc", "gcc", "c++", "make", "musl-gcc", "ld", "as"])
def test_the_gateway_has_no_sudo_and_no_compilers(client: docker.DockerClient, images: ImageTags, command: str) -> None:
    assert run_in_container(client, images.gateway, "sh", "-c", f"command -v {command} || echo absent") == "absent\n"


@pytest.mark.parametrize("user", ["root", "user"])
def test_a_login_shell_finds_what_lies_in_usr_local_bin(
    client: docker.DockerClient, images: ImageTags, user: str
) -> None:
    found = run_in_container(
        client, images.workspace, "bash", "-lc", "command -v mcp-gateway node uv", user=user
    ).splitlines()
    assert found == ["/usr/local/bin/mcp-gateway", "/usr/local/bin/node", "/usr/local/bin/uv"]


@pytest.mark.parametrize(
    ("image", "python", "package"),
    [("workspace", "/opt/sandgate/agent", "sandgate_agent"), ("gateway", "/opt/sandgate/gateway", "sandgate_gateway")],
)
def test_our_packages_are_there_with_byte_code_for_every_module(
    client: docker.DockerClient, images: ImageTags, image: str, python: str, package: str
) -> None:
    script = (
        "import importlib, importlib.util, pkgutil, pathlib, sys\n"
        f"package = importlib.import_module({package!r})\n"
        "names = [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + '.')]\n"
        "origins = [importlib.util.find_spec(name).origin for name in names]\n"
        "missing = [o for o in origins if not pathlib.Path(importlib.util.cache_from_source(o)).exists()]\n"
        "print(len(names), missing)\n"
    )
    count, _, missing = run_in_container(
        client, getattr(images, image), f"{python}/bin/python", "-I", "-c", script
    ).partition(" ")
    assert int(count) > 5
    assert missing.strip() == "[]"


def test_certificates_of_the_host_are_trusted_in_every_image(client: docker.DockerClient, images: ImageTags) -> None:
    bundle = Settings().ca_bundle
    expected = certificates(bundle.read_text()) if bundle is not None else set()
    for image in (images.base, images.workspace, images.gateway):
        store = certificates(run_in_container(client, image, "sh", "-c", "cat $SSL_CERT_FILE"))
        assert store
        assert expected <= store


def certificates(text: str) -> set[bytes]:
    blocks = re.findall("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", text, re.DOTALL)
    return {ssl.PEM_cert_to_DER_cert(block) for block in blocks}
