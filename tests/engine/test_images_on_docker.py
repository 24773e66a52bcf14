"""The sandbox images on a real engine: what is rebuilt when, what a failed build says, and what is inside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import ImageNotFound

from app.engines.images import BuildProgress, ImageBuilder, ImageBuildError, ImageTags
from app.settings import ROOT, Settings

pytestmark = pytest.mark.docker

SERVERS = {
    "time": (["/opt/mcp/time/bin/mcp-server-time"], "convert_time"),
    "fetch": (["/opt/mcp/fetch/bin/mcp-server-fetch"], "fetch"),
    "git": (["/opt/mcp/git/bin/mcp-server-git"], "git_status"),
    "sqlite": (["/opt/mcp/sqlite/bin/mcp-server-sqlite", "--db-path", "data.db"], "read_query"),
    "everything": (["/opt/mcp/everything/node_modules/.bin/mcp-server-everything"], "echo"),
    "filesystem": (["/opt/mcp/filesystem/node_modules/.bin/mcp-server-filesystem", "."], "read_text_file"),
    "memory": (["/opt/mcp/memory/node_modules/.bin/mcp-server-memory"], "create_entities"),
    "sequentialthinking": (
        ["/opt/mcp/sequentialthinking/node_modules/.bin/mcp-server-sequential-thinking"],
        "sequentialthinking",
    ),
}
"""Name -> command and a tool it must have."""


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
        self._builder = ImageBuilder(client, source, base_image=base_image, ca_bundle=None)
        self._made: set[str] = set()
        for folder in ("base", "servers", "workspace", "gateway", "stdio_bridge"):
            (source / folder).mkdir()
        for image in ("base", "workspace", "gateway"):
            (source / image / "content").write_text(f"{image} of {source}")
            self.set_dockerfile(image, f"COPY {image}/content /{image}-content")

    def set_dockerfile(self, image: str, *steps: str) -> None:
        lines = ("ARG FROM_IMAGE", "FROM $FROM_IMAGE", *steps)
        (self.source / image / "Dockerfile").write_text("\n".join(lines) + "\n")

    def missing(self) -> list[str]:
        return self._builder.missing()

    def build(self) -> tuple[ImageTags, set[str]]:
        """The tags, and which images were built for them."""
        self._made.update(self._builder.missing())
        seen: list[BuildProgress] = []
        tags = self._builder.build(seen.append)
        return tags, {progress.image for progress in seen}

    def remove(self) -> None:
        for tag in sorted(self._made, key=lambda tag: tag.startswith("sandgate/base")):
            try:
                self._client.images.remove(tag)
            except ImageNotFound:
                continue


@pytest.fixture
def tiny(client: docker.DockerClient, images: ImageTags, tmp_path: Path) -> Iterator[TinyImages]:
    tiny = TinyImages(client, tmp_path, images.base)
    yield tiny
    tiny.remove()


def run(client: docker.DockerClient, image: str, *command: str, user: str = "root") -> str:
    """Standard output of a program in a container of its own without a network. Raises: ContainerError if it fails."""
    output = client.containers.run(
        image,
        list(command[1:]),
        entrypoint=command[0],
        user=user,
        network_mode="none",
        environment={"HOME": "/tmp/home"},
        remove=True,
    )
    return bytes(output).decode()


def test_a_change_builds_its_image_and_what_stands_on_it_and_nothing_else(tiny: TinyImages) -> None:
    first, built = tiny.build()
    assert built == {"base", "workspace", "gateway"}
    assert tiny.missing() == []
    assert tiny.build() == (first, set())

    (tiny.source / "stdio_bridge" / "stdio_bridge.c").write_text("changed")
    second, built = tiny.build()
    assert built == {"gateway"}
    assert (second.base, second.workspace) == (first.base, first.workspace)

    (tiny.source / "servers" / "time.lock").write_text("changed")
    third, built = tiny.build()
    assert built == {"base", "workspace", "gateway"}
    assert not {third.base, third.workspace, third.gateway} & {second.base, second.workspace, second.gateway}


def test_images_are_made_of_the_files_that_gave_the_tags(client: docker.DockerClient, tiny: TinyImages) -> None:
    tags, _ = tiny.build()
    for image in ("base", "workspace", "gateway"):
        assert run(client, getattr(tags, image), "cat", f"/{image}-content") == f"{image} of {tiny.source}"


def test_a_failed_build_tells_image_step_and_last_output_and_leaves_no_tag(
    client: docker.DockerClient, tiny: TinyImages
) -> None:
    tiny.set_dockerfile("gateway", "RUN echo nothing wrong yet", "RUN echo the compiler is missing >&2; exit 3")
    with pytest.raises(ImageBuildError) as failed:
        tiny.build()
    [gateway] = tiny.missing()
    assert failed.value.tag == gateway
    lines = str(failed.value).splitlines()
    assert lines[0].startswith(f"Image {gateway} could not be built. Step 4 of 5, RUN echo the compiler is missing")
    assert "returned a non-zero code: 3" in lines[0]
    assert any("the compiler is missing" in line for line in lines[1:])
    assert not any("nothing wrong yet" in line for line in lines)


def test_a_dockerfile_that_cannot_be_read_is_an_error_about_its_image(tiny: TinyImages) -> None:
    tiny.set_dockerfile("base", "FLY to the moon")
    with pytest.raises(EngineError, match=r"sandgate/base:[0-9a-f]{12}.*FLY"):
        tiny.build()


def test_a_build_waits_for_another_one_of_the_same_sources(tiny: TinyImages) -> None:
    lines: queue.Queue[str] = queue.Queue()
    tiny.set_dockerfile("gateway", "RUN sleep 2")
    with ThreadPoolExecutor(2) as threads:
        builds = [threads.submit(tiny.build) for _ in range(2)]
        results = [build.result(timeout=120) for build in builds]
    assert results[0][0] == results[1][0]
    assert lines.empty()


@pytest.mark.parametrize("image", ["workspace", "gateway"])
@pytest.mark.parametrize("server", SERVERS)
def test_a_baked_server_starts_offline_as_any_user(
    client: docker.DockerClient, images: ImageTags, image: str, server: str
) -> None:
    command, tool = SERVERS[server]
    script = (Path(__file__).parent / "list_tools.py").read_text()
    output = run(client, getattr(images, image), "python3", "-c", script, *command, user="54321:54321")
    answer = json.loads(output)
    assert answer["uid"] == 54321
    assert tool in answer["tools"]
