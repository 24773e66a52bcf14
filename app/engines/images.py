"""The sandbox images: how they are named after their inputs, which of them the engine lacks, and how those are built.

    base        Debian, Python, Node, uv, git and the baked MCP servers
    ├── workspace   the agent, sudo, compilers
    └── gateway     the gateway, the stdio bridge

An image's tag is a hash of everything it is made of and of the tag of the image below it. So a change gives new tags to
that image and to what stands on it, and an image that exists never has to be compared with its sources.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.errors import ImageNotFound

from app.engines.debian_base import debian_base
from app.engines.docker_client import docker_errors_mapped
from app.errors import EngineError, EngineOutOfSpace

STEP_SILENCE_S = 900
"""How long a build step may print nothing before the build is given up."""
OTHER_BUILD_S = 3600
"""How long to wait for another build of the same sources to end."""
OUTPUT_LINES = 20
"""How much of a failed step's output goes into the error."""

_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)")


@dataclass(frozen=True, slots=True)
class ImageTags:
    base: str
    workspace: str
    gateway: str


@dataclass(frozen=True, slots=True)
class BuildProgress:
    image: str
    """`base`, `workspace` or `gateway`."""
    step: int
    """Counted from 1; 0 before the first one."""
    steps: int
    line: str
    """The last line of output."""


class ImageBuildError(EngineError):
    """A step of an image's build failed. The message ends with what the step printed last."""

    def __init__(self, *, tag: str, step: str, reason: str, output: str) -> None:
        super().__init__(f"Image {tag} could not be built. {step}: {reason}\n{output}".rstrip())
        self.tag = tag
        self.step = step
        self.output = output


@dataclass(frozen=True, slots=True)
class _Folder:
    """What an image is built from, below the source folder."""

    image: str
    parts: tuple[str, ...]

    def files(self, source: Path) -> Iterator[tuple[str, Path]]:
        """Name in the build context and path of each file, in a fixed order, without what Python and editors leave."""
        for part in self.parts:
            for path in sorted((source / part).rglob("*")):
                name = path.relative_to(source)
                hidden = any(piece == "__pycache__" or piece.startswith(".") for piece in name.parts)
                if path.is_file() and not hidden:
                    yield name.as_posix(), path


_BASE = _Folder("base", ("base", "servers"))
_WORKSPACE = _Folder("workspace", ("workspace",))
_GATEWAY = _Folder("gateway", ("gateway", "stdio_bridge"))


def image_tags(source: Path, *, base_image: str, ca_bundle: Path | None) -> ImageTags:
    """The tags of the images built from `source`. Reads files and asks no engine.

    Raises: EngineError when `source` or `ca_bundle` cannot be read.
    """
    base = _tag(_BASE, source, base_image, hashlib.sha256(_certificates(ca_bundle)).hexdigest())
    return ImageTags(base=base, workspace=_tag(_WORKSPACE, source, base), gateway=_tag(_GATEWAY, source, base))


class ImageBuilder:
    """Builds on the engine what is missing there. Blocking, for a command line; safe to repeat and to interrupt.

    An image gets its tag when its last step is done, so a build that is cut short leaves nothing that passes for one.
    """

    def __init__(self, client: docker.DockerClient, source: Path, *, base_image: str, ca_bundle: Path | None) -> None:
        self._client = client
        self._source = source
        self._base_image = base_image
        self._ca_bundle = ca_bundle

    def missing(self) -> list[str]:
        """Tags of the images that are not on the engine, in the order in which they are built."""
        return [tag for tag in self._ordered() if not self._is_present(tag)]

    def build(self, report: Callable[[BuildProgress], None]) -> ImageTags:
        """Build what is missing and tell `report` of each line of output. Of builders of one source folder, one works.

        Raises: ImageBuildError, EngineUnavailable, EngineOutOfSpace, EngineError.
        """
        with _only_builder_of(self._source, waiting=lambda line: report(BuildProgress("base", 0, 0, line))):
            tags = image_tags(self._source, base_image=self._base_image, ca_bundle=self._ca_bundle)
            missing = self.missing()
            if tags.base in missing:
                below = debian_base(
                    self._client, self._base_image, lambda line: report(BuildProgress("base", 0, 0, line))
                )
                self._build(_BASE, tags.base, below, {"ca-bundle.crt": _certificates(self._ca_bundle)}, report)
            if tags.workspace in missing:
                self._build(_WORKSPACE, tags.workspace, tags.base, {}, report)
            if tags.gateway in missing:
                self._build(_GATEWAY, tags.gateway, tags.base, {}, report)
            return tags

    def _ordered(self) -> tuple[str, ...]:
        tags = image_tags(self._source, base_image=self._base_image, ca_bundle=self._ca_bundle)
        return tags.base, tags.workspace, tags.gateway

    def _is_present(self, tag: str) -> bool:
        with docker_errors_mapped(f"look for image {tag}"):
            try:
                self._client.images.get(tag)
            except ImageNotFound:
                return False
            return True

    def _build(
        self,
        folder: _Folder,
        tag: str,
        below: str,
        more_files: Mapping[str, bytes],
        report: Callable[[BuildProgress], None],
    ) -> None:
        number, steps, instruction = 0, 0, "before the first step"
        output: deque[str] = deque(maxlen=OUTPUT_LINES)
        with docker_errors_mapped(f"build image {tag}"):
            events = self._client.api.build(
                fileobj=_context(folder, self._source, more_files),
                custom_context=True,
                dockerfile=f"{folder.image}/Dockerfile",
                tag=tag,
                buildargs={"FROM_IMAGE": below},
                labels={"sandgate.image": folder.image},
                rm=True,
                forcerm=True,
                timeout=STEP_SILENCE_S,
                decode=True,
            )
            for event in events:
                if "error" in event:
                    step = f"Step {number} of {steps}, {instruction}" if number else "The first step did not begin"
                    raise _build_failure(tag, step, str(event["error"]), output)
                for line in str(event.get("stream") or event.get("status") or "").splitlines():
                    if match := _STEP.match(line):
                        number, steps, instruction = int(match[1]), int(match[2]), match[3]
                        output.clear()
                    elif line.strip():
                        output.append(line.rstrip())
                    report(BuildProgress(folder.image, number, steps, line.strip()))
        if not self._is_present(tag):
            raise _build_failure(tag, instruction, "the engine ended the build without an image", output)


def _build_failure(tag: str, step: str, reason: str, output: deque[str]) -> EngineError:
    text = "\n".join(output)
    if "no space left on device" in f"{reason}\n{text}".lower():
        return EngineOutOfSpace(
            f"Image {tag} could not be built: the engine's disk is full. Free space there and try again."
        )
    return ImageBuildError(tag=tag, step=step, reason=reason, output=text)


def _tag(folder: _Folder, source: Path, *below: str) -> str:
    digest = hashlib.sha256()
    for text in below:
        digest.update(f"{text}\0".encode())
    try:
        for name, path in folder.files(source):
            content = path.read_bytes()
            digest.update(f"{name}\0{_mode(path):o}\0{len(content)}\0".encode())
            digest.update(content)
    except OSError as error:
        raise EngineError(f"The sources of image {folder.image} cannot be read: {error}") from error
    return f"sandgate/{folder.image}:{digest.hexdigest()[:12]}"


def _context(folder: _Folder, source: Path, more_files: Mapping[str, bytes]) -> io.BytesIO:
    """The build context as a tar archive. Nothing in it depends on when or by whom the files were written."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, path in folder.files(source):
            _add(archive, name, path.read_bytes(), _mode(path))
        for name, content in more_files.items():
            _add(archive, name, content, 0o644)
    packed.seek(0)
    return packed


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = mode
    archive.addfile(entry, io.BytesIO(content))


def _mode(path: Path) -> int:
    """What git keeps of a file's mode; the rest depends on the umask of whoever checked it out."""
    return 0o755 if path.stat().st_mode & 0o100 else 0o644


def _certificates(ca_bundle: Path | None) -> bytes:
    if ca_bundle is None:
        return b""
    try:
        return ca_bundle.read_bytes()
    except OSError as error:
        raise EngineError(f"SANDGATE_CA_BUNDLE cannot be read: {error}") from error


@contextmanager
def _only_builder_of(source: Path, *, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock on the source folder itself: it needs no file of its own and goes with the process."""
    try:
        folder = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise EngineError(f"The folder of the sandbox images cannot be read: {error}") from error
    try:
        give_up_at = time.monotonic() + OTHER_BUILD_S
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_at:
                    raise EngineError(f"Another build of {source} has not ended within {OTHER_BUILD_S} s.") from None
                waiting("waiting for another build of the same images")
                time.sleep(0.5)
        yield
    finally:
        os.close(folder)
