"""Build steps on Docker Engine: create, fill, start, follow the output, commit, remove.

Step containers are told from others by their names. Labels will not do: an image inherits those of the container it
was committed from, and so does every container of that image.
"""

from __future__ import annotations

import asyncio
import json
import re
import tarfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

import docker
import structlog
from docker.errors import APIError, ImageNotFound
from docker.types import LogConfig

from app.engines import docker_pods
from app.engines.builds import (
    BuildStep,
    ImageFacts,
    ImagePullError,
    NamedImage,
    OnOutput,
    RegistryLogin,
    Result,
    Tree,
    Upload,
)
from app.engines.docker_client import DockerClient
from app.engines.docker_helpers import remove_container, remove_image
from app.engines.docker_networks import DockerNetworks
from app.engines.docker_pods import PodNetwork
from app.engines.jobs import Report
from app.engines.pull_progress import PullProgress
from app.errors import EngineError

_log = structlog.get_logger()
T = TypeVar("T")

TRANSFER_S = 1800
"""The engine answers nothing while it copies or commits a whole image; a client for builds has to wait that long."""
_QUICK_S = 60
"""For what copies nothing; a shutdown waits no longer for an engine that hangs."""
_PREPARE_WAIT_S = 30
_PREPARE_POLL_S = 0.1
_CHUNK = 1024 * 1024
_TREE = "-tree"
"""Behind a step container's name: the one that it copies a folder from."""
_ESCAPED = re.compile(r'["\\$]')
"""What is not itself between the double quotes of a Dockerfile."""


class DockerBuilds:
    def __init__(
        self, client: DockerClient, networks: DockerNetworks, installation: str, *, runtime: str | None
    ) -> None:
        """`client` is for builds alone, since following a step's output keeps one of its threads."""
        self._client = client
        self._networks = networks
        self._runtime = runtime
        self._prefix = f"sandgate-build-{installation}-"
        self._running: set[str] = set()
        """Names of the containers of the steps under way."""
        self._comment = f"a layer of Sandgate's installation {installation}"
        """Of the images that steps become. A label would be passed on to whatever is made of them."""

    async def find_image(self, image: str) -> ImageFacts | None:
        doing = f"look for image {image}"
        return await self._client.call(lambda api: _find_image(api, image), doing=doing, timeout_s=_QUICK_S)

    async def pull(self, image: str, login: RegistryLogin | None = None, *, report: Report = lambda line: None) -> None:
        name, tag = _split(image)
        # With an empty login the SDK would send what the operator's own Docker configuration holds.
        auth = {"username": login.username if login else "", "password": login.password if login else ""}

        loop = asyncio.get_running_loop()

        def pull(api: docker.APIClient) -> None:
            progress = PullProgress()
            try:
                for event in api.pull(name, tag=tag, stream=True, decode=True, auth_config=auth):
                    if line := progress.take(event):
                        loop.call_soon_threadsafe(report, line)
                    if "error" in event:
                        raise ImagePullError(f"Image {image} cannot be pulled: {event['error']}")
            except APIError as error:
                raise ImagePullError(f"Image {image} cannot be pulled: {error.explanation or error}") from error

        await self._client.call(pull, doing=f"pull image {image}", image=image)

    async def run(self, step: BuildStep, on_output: OnOutput) -> int:
        network = await self._network()
        container = f"{self._prefix}{step.build_id}-{uuid4().hex[:12]}"
        under_way: list[asyncio.Future[Any]] = []

        async def call(work: Callable[[docker.APIClient], T], doing: str) -> T:
            future = self._client.submit(work, doing=f"{doing} of build {step.build_id}", image=step.image)
            under_way.append(future)
            # Shielded, because cancelling the future would hide that its thread goes on.
            return await asyncio.shield(future)

        loop = asyncio.get_running_loop()

        def follow(api: docker.APIClient) -> None:
            for chunk in api.logs(container, stdout=True, stderr=True, stream=True, follow=True):
                loop.call_soon_threadsafe(on_output, chunk)

        self._running.add(container)
        try:
            await call(lambda api: self._make(api, step, container, network), "make a container")
            await call(lambda api: api.start(container), "start a container")
            await call(follow, "follow the output")
            code = await call(lambda api: int(api.wait(container)["StatusCode"]), "wait for the end of a step")
            if code == 0 and (result := step.result) is not None:
                await call(lambda api: self._commit(api, container, result), "keep the files")
            return code
        finally:
            try:
                await _in_spite_of_cancellation(self._remove(container, under_way))
            finally:
                self._running.remove(container)

    async def name_image(self, image: str, name: str) -> None:
        repository, tag = _split(name)
        await self._client.call(lambda api: api.tag(image, repository, tag), doing=f"name image {name}", image=image)

    async def images(self, repository: str) -> list[NamedImage]:
        def listing(api: docker.APIClient) -> list[NamedImage]:
            return [
                NamedImage(name=name, created_at=datetime.fromtimestamp(image["Created"], UTC))
                for image in api.images(name=repository)
                for name in image["RepoTags"] or ()
                if name.startswith(f"{repository}:")
            ]

        return await self._client.call(listing, doing=f"list images of {repository}", timeout_s=_QUICK_S)

    async def remove_unnamed_images(self, *, older_than_s: float) -> None:
        def remove(api: docker.APIClient) -> None:
            for image in api.images(filters={"dangling": True}):
                if image["Created"] > time.time() - older_than_s:
                    continue
                with suppress(ImageNotFound):
                    facts = api.inspect_image(image["Id"])  # type: ignore[no-untyped-call]  # stubs lack it
                    if facts.get("Comment") == self._comment:
                        remove_image(api, image["Id"])

        await self._client.call(remove, doing="remove images without a name")

    async def remove_containers(self) -> None:
        def remove(api: docker.APIClient) -> None:
            for container in api.containers(all=True, filters={"name": f"^/?{re.escape(self._prefix)}"}):
                if container["Names"][0].lstrip("/").removesuffix(_TREE) not in self._running:
                    remove_container(api, container["Id"])

        await self._client.call(remove, doing="remove containers of image builds")

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _network(self) -> PodNetwork:
        """A build that comes right after the start waits until the guard is in place. Raises: EngineError."""
        give_up_at = time.monotonic() + _PREPARE_WAIT_S
        while True:
            try:
                return self._networks.for_pod(egress=True)
            except EngineError:
                if time.monotonic() > give_up_at:
                    raise
            await asyncio.sleep(_PREPARE_POLL_S)

    async def _remove(self, container: str, under_way: list[asyncio.Future[Any]]) -> None:
        """Whatever its state, and once more when no thread can make it any more.

        One that the engine does not let go stays for `remove_containers`: how the step ended counts for more.
        """
        # Before the first removal: what a thread makes while that is answered is there after it.
        pending = [future for future in under_way if not future.done()]

        async def remove() -> bool:
            try:
                await self._client.call(
                    lambda api: remove_container(api, container), doing=f"remove {container}", timeout_s=_QUICK_S
                )
            except EngineError as error:
                _log.warning("build_container_not_removed", container=container, reason=str(error))
                return False
            return True

        if not await remove():
            await remove()  # before the wait: who follows the output comes to an end with the container
        if pending:
            await asyncio.wait(pending, timeout=_QUICK_S)
            await remove()
        for future in under_way:
            # Whoever waited for it may be gone; nobody is left to hear of it.
            future.add_done_callback(lambda done: done.cancelled() or done.exception())

    # What follows runs in a thread.

    def _make(self, api: docker.APIClient, step: BuildStep, container: str, network: PodNetwork) -> None:
        host_config = api.create_host_config(
            **docker_pods.attachment_arguments(network),
            **docker_pods.confinement(step.limits, step.capabilities, new_privileges=True),
            runtime=self._runtime,
            log_config=LogConfig(type="json-file", config={"max-size": "4m", "max-file": "2"}),
        )
        api.create_container(
            step.image,
            name=container,
            entrypoint=[step.command[0]],
            command=list(step.command[1:]),
            user="0:0",
            working_dir="/",
            hostname="sandbox",
            # An image that was a sandbox's snapshot has that sandbox's labels: this must not be taken for its pod.
            labels={docker_pods.INSTALLATION_LABEL: ""},
            healthcheck={"test": ["NONE"]},
            use_config_proxy=False,
            host_config=host_config,
        )
        for tree in step.trees:
            _copy_tree(api, tree, container)
        if step.files:
            api.put_archive(container, "/", docker_pods.archive(step.files))
        for upload in step.uploads:
            _put_upload(api, upload, container)

    def _commit(self, api: docker.APIClient, container: str, result: Result) -> None:
        repository, tag = _split(result.name)
        changes = [
            f"ENTRYPOINT {json.dumps(result.entrypoint)}",
            "CMD []",
            "USER 0",
            "WORKDIR /",
            *(f"ENV {name}={_quoted(value)}" for name, value in result.env.items()),
        ]
        api.commit(container, repository, tag, message=self._comment, pause=False, changes=changes)


async def _in_spite_of_cancellation(work: Coroutine[Any, Any, None]) -> None:
    """Run clean-up to its end; a cancellation that comes meanwhile is raised then."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _find_image(api: docker.APIClient, image: str) -> ImageFacts | None:
    try:
        found: Mapping[str, Any] = api.inspect_image(image)  # type: ignore[no-untyped-call]  # stubs lack it
    except ImageNotFound:
        return None
    # The engine also finds an image by a part of its id.
    name, tag = _split(image)
    if f"{name}:{tag}" not in (found["RepoTags"] or ()) and image not in (found["RepoDigests"] or ()):
        return None
    config = found["Config"] or {}
    env = dict(entry.partition("=")[::2] for entry in config.get("Env") or ())
    return ImageFacts(image_id=found["Id"], env=env, labels=config.get("Labels") or {})


def _split(image: str) -> tuple[str, str]:
    """Name, and tag or digest: `latest` where none is given."""
    name, at, digest = image.partition("@")
    if at:
        return name, digest
    head, colon, tag = name.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (name, "latest")


def _copy_tree(api: docker.APIClient, tree: Tree, container: str) -> None:
    """Stream a folder from a container that is never started into another one."""
    source = api.create_container(
        tree.image,
        name=f"{container}{_TREE}",
        entrypoint=["true"],
        labels={docker_pods.INSTALLATION_LABEL: ""},
        network_disabled=True,
        use_config_proxy=False,
    )["Id"]
    try:
        chunks, _ = api.get_archive(source, tree.path, chunk_size=_CHUNK)
        api.put_archive(container, tree.into, chunks)
    finally:
        remove_container(api, source)


def _put_upload(api: docker.APIClient, upload: Upload, container: str) -> None:
    size = upload.source.stat().st_size
    with upload.source.open("rb") as file:

        def archive() -> Iterator[bytes]:
            entry = tarfile.TarInfo(upload.path.lstrip("/"))
            entry.size, entry.mode = size, 0o400
            yield entry.tobuf()
            while chunk := file.read(_CHUNK):
                yield chunk
            yield bytes(-size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)

        api.put_archive(container, "/", archive())


def _quoted(value: str) -> str:
    return '"' + _ESCAPED.sub(r"\\\g<0>", value) + '"'
