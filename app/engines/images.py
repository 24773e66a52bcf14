"""The sandbox images: how they are named after their sources, which of them the engine lacks, and building those.

    base            Debian, Python, Node, uv and git
    ├── workspace   the agent, sudo, compilers
    └── gateway     the gateway, the stdio bridge

An image's tag is a hash of everything it is made of and of the tag of the image below it. So a change gives new tags to
that image and to what stands on it, and an image that exists never has to be compared with its sources.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker

from app.engines.debian_base import debian_base, is_present
from app.engines.docker_client import docker_errors_mapped
from app.engines.image_sources import ImageSources, ImageTags
from app.errors import EngineError, EngineOutOfSpace

__all__ = ["BuildProgress", "ImageBuildError", "ImageBuilder", "ImageTags", "image_tags"]

STEP_SILENCE_S = 900
"""How long a build step may print nothing before the build is given up."""
OTHER_BUILD_S = 3600
"""How long to wait for another build of the same sources to end."""
OUTPUT_LINES = 20
"""How much of a failed step's output goes into the error."""


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


Report = Callable[[BuildProgress], None]


def image_tags(source: Path, *, base_image: str, ca_bundle: Path | None) -> ImageTags:
    """The tags of the images built from `source`. Reads files and asks no engine.

    Raises: EngineError when `source` or `ca_bundle` cannot be read.
    """
    return ImageSources(source, base_image=base_image, ca_bundle=ca_bundle).tags


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
        tags = self._read_sources().tags
        return [tag for tag in (tags.base, tags.workspace, tags.gateway) if not is_present(self._client, tag)]

    def build(self, report: Report) -> ImageTags:
        """Build what is missing and tell `report` of each line of output. Of builders of one source folder, one works.

        Raises: ImageBuildError, EngineUnavailable, EngineOutOfSpace, EngineError.
        """

        def say(line: str) -> None:
            report(BuildProgress("base", 0, 0, line))

        with _only_builder_of(self._source, say):
            sources = self._read_sources()
            tags = sources.tags
            if not is_present(self._client, tags.base):
                below = debian_base(self._client, self._base_image, say)
                self._build("base", tags.base, sources, below, report)
            if not is_present(self._client, tags.workspace):
                self._build("workspace", tags.workspace, sources, tags.base, report)
            if not is_present(self._client, tags.gateway):
                self._build("gateway", tags.gateway, sources, tags.base, report)
            return tags

    def _read_sources(self) -> ImageSources:
        return ImageSources(self._source, base_image=self._base_image, ca_bundle=self._ca_bundle)

    def _build(self, image: str, tag: str, sources: ImageSources, below: str, report: Report) -> None:
        output = _Output()
        reason: str | None = None
        with docker_errors_mapped(f"build image {tag}"):
            events = self._client.api.build(
                fileobj=sources.context(image),
                custom_context=True,
                dockerfile=f"{image}/Dockerfile",
                tag=tag,
                buildargs={"FROM_IMAGE": below},
                labels={"sandgate.image": image},
                rm=True,
                forcerm=True,
                timeout=STEP_SILENCE_S,
                decode=True,
            )
            # Read to the end even after an error, which is the last event: only then the SDK closes the connection.
            for event in events:
                reason = event.get("error", reason)
                for line in event.get("stream", "").splitlines():
                    output.add(line.strip())
                    report(BuildProgress(image, output.step, output.steps, line.strip()))
        if reason is None and not is_present(self._client, tag):
            reason = "the engine ended the build without an image"
        if reason is not None:
            raise output.failure(tag, reason)


class _Output:
    """Where a build is, by what the engine prints, and the last lines of the current step."""

    _STEP = re.compile(r"Step (\d+)/(\d+) : (.*)")

    def __init__(self) -> None:
        self.step = 0
        self.steps = 0
        self._instruction = ""
        self._lines: deque[str] = deque(maxlen=OUTPUT_LINES)

    def add(self, line: str) -> None:
        if match := self._STEP.match(line):
            self.step, self.steps, self._instruction = int(match[1]), int(match[2]), match[3]
            self._lines.clear()
        elif line:
            self._lines.append(line)

    def failure(self, tag: str, reason: str) -> EngineError:
        text = "\n".join(self._lines)
        if "no space left on device" in f"{reason}\n{text}".lower():
            return EngineOutOfSpace(f"Image {tag} could not be built: the engine's disk is full. Free space there.")
        step = f"Step {self.step} of {self.steps}, {self._instruction}" if self.step else "Before the first step"
        return ImageBuildError(tag=tag, step=step, reason=reason, output=text)


@contextmanager
def _only_builder_of(source: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock on the source folder itself: it needs no file of its own and goes with the process."""
    try:
        folder = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise EngineError(f"The sources of the sandbox images cannot be read: {error}") from error
    try:
        give_up_at = time.monotonic() + OTHER_BUILD_S
        while not _locked(folder):
            if time.monotonic() > give_up_at:
                raise EngineError(f"Another build of {source} has not ended within {OTHER_BUILD_S} s.")
            say("waiting for another build of the same images")
            time.sleep(0.5)
        yield
    finally:
        os.close(folder)


def _locked(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
