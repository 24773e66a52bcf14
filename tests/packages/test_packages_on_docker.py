"""Packages on a real engine: installed by a job from their shipped locks, started from the store as in sandboxes."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import pytest
import pytest_asyncio
from docker.types import Mount

from app.catalog import Catalog, PackageRun, render
from app.catalog.package import Package
from app.engines.docker_engine import DockerEngine
from app.engines.docker_pods import shared_volume_name
from app.engines.images import ImageTags
from app.main import sandbox_images
from app.packages import STORE_MOUNT, PackageInstallError, PackageLocks, PackageStore
from app.settings import ROOT, Settings
from tests.container_runs import run_in_container
from tests.shipped_packages import shipped_package

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="session")]

LIST_TOOLS = (ROOT / "tests" / "engine" / "list_tools.py").read_text()
STORE = Mount(
    target=STORE_MOUNT.path, source=shared_volume_name(STORE_MOUNT.volume), type="volume", no_copy=True, read_only=True
)
EXTRACT = (
    "import json, sys; from readabilipy import simple_json_from_html_string as extract;"
    "text = 'A sentence of the article. ' * 40;"
    "page = f'<title>Title</title><nav>Menu</nav><article><p>{text}</p></article>';"
    "sys.stdout.write(json.dumps(extract(page, use_readability=True)))"
)


@pytest.fixture(scope="session")
def images() -> ImageTags:
    return sandbox_images(Settings())


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def store(images: ImageTags) -> AsyncIterator[PackageStore]:
    engine = DockerEngine(f"tests-packages-{os.getpid()}", guard_image=images.base)
    try:
        await engine.prepare()
        yield PackageStore(
            engine,
            image=images.workspace,
            installer=ROOT / "sandbox_images" / "installer" / "install_package.py",
            locks=PackageLocks([ROOT / "catalog" / "locks"]),
        )
    finally:
        await engine.remove_installation()
        await engine.aclose()


def run(client: docker.DockerClient, image: str, *command: str, user: str = "54321:54321") -> str:
    """As `run_in_container`, with the store."""
    return run_in_container(client, image, *command, user=user, mounts=[STORE])


@pytest.mark.parametrize("image", ["workspace", "gateway"])
@pytest.mark.parametrize(
    ("key", "tool"),
    [("time", "convert_time"), ("git", "git_status"), ("sqlite", "read_query"), ("memory", "create_entities")],
)
async def test_an_installed_server_starts_offline_as_any_user(
    store: PackageStore, client: docker.DockerClient, images: ImageTags, image: str, key: str, tool: str
) -> None:
    definition = Catalog.load(ROOT / "catalog" / "servers").find(key)
    assert definition is not None
    rendered = render(definition, key, {"db_path": "/tmp/home/data.db"} if key == "sqlite" else {}).run
    assert isinstance(rendered, PackageRun)
    await store.ensure(key, shipped_package(key))
    command = ("python3", "-c", LIST_TOOLS, *rendered.command)
    answer = json.loads(await asyncio.to_thread(run, client, getattr(images, image), *command))
    assert answer["uid"] == 54321
    assert tool in answer["tools"]


async def test_the_fetch_server_extracts_articles_with_what_is_installed(
    store: PackageStore, client: docker.DockerClient, images: ImageTags
) -> None:
    package = shipped_package("fetch")
    await store.ensure("fetch", package)
    python = f"{package.directory}/bin/python"
    article = json.loads(await asyncio.to_thread(run, client, images.gateway, python, "-c", EXTRACT))
    assert article["title"] == "Title"
    assert "A sentence of the article." in article["content"]
    assert "readability-page" in article["content"], "readabilipy fell back to its own extraction"


async def test_nobody_in_a_sandbox_can_write_to_the_store(
    store: PackageStore, client: docker.DockerClient, images: ImageTags
) -> None:
    package = shipped_package("time")
    await store.ensure("time", package)
    script = f"touch {package.directory}/x {STORE_MOUNT.path}/x; find {package.directory} -type f -perm /7222; true"
    assert await asyncio.to_thread(run, client, images.workspace, "sh", "-c", script, user="root") == ""


async def test_equal_files_of_two_packages_are_one(
    store: PackageStore, client: docker.DockerClient, images: ImageTags
) -> None:
    packages = [shipped_package(key) for key in ("time", "fetch")]
    for package in packages:
        await store.ensure("any", package)
    files = [f"{package.directory}/lib/python3.13/site-packages/idna/core.py" for package in packages]
    inodes = (await asyncio.to_thread(run, client, images.gateway, "stat", "--format=%i", *files)).split()
    assert len(inodes) == 2
    assert len(set(inodes)) == 1


async def test_the_lock_of_an_installation_is_the_one_it_was_made_from(store: PackageStore) -> None:
    package = shipped_package("time")
    await store.ensure("time", package)
    assert await store.lock_of(package) == PackageLocks([ROOT / "catalog" / "locks"]).read(package)


async def test_a_file_with_another_hash_than_the_lock_says_is_refused(
    store: PackageStore, images: ImageTags, tmp_path: Path
) -> None:
    package = shipped_package("time")
    lock = PackageLocks([ROOT / "catalog" / "locks"]).read(package)
    assert lock is not None
    locks = PackageLocks([tmp_path])
    false = {"requirements.txt": _with_false_hashes(lock["requirements.txt"])}
    named = package.model_copy(update={"lock": locks.write(package, false)})
    engine = DockerEngine(f"tests-packages-{os.getpid()}", guard_image=images.base)
    try:
        await engine.prepare()
        own = PackageStore(
            engine,
            image=images.workspace,
            installer=ROOT / "sandbox_images" / "installer" / "install_package.py",
            locks=locks,
        )
        with pytest.raises(PackageInstallError, match="could not be installed") as caught:
            await own.ensure("time", named)
    finally:
        await engine.aclose()
    assert "hash" in caught.value.output.lower()


async def test_a_package_that_is_not_in_its_registry_is_told_with_the_installers_words(store: PackageStore) -> None:
    absent = Package(registry="pypi", name="mcp-server-time", version="0.0.0")
    with pytest.raises(PackageInstallError) as caught:
        await store.ensure("clock", absent)
    assert str(caught.value).startswith("MCP server 'clock' needs mcp-server-time 0.0.0 (PyPI), which could not be")
    assert "mcp-server-time==0.0.0" in caught.value.output
    assert not await store.is_installed(absent)


def _with_false_hashes(lock: bytes) -> bytes:
    lines = [line.partition(b" --hash=")[0] + b" --hash=sha256:" + b"0" * 64 for line in lock.splitlines()]
    return b"\n".join(lines) + b"\n"
