"""What a container engine does for building images: steps, each in a container of its own, each giving an image.

A step runs untrusted code, so its container is confined as a pod is: same network and guard, same limits, no more
capabilities. Like `interface`, this knows nothing of templates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from app.engines.interface import File, Limits
from app.engines.jobs import Report
from app.errors import EngineError

OnOutput = Callable[[bytes], None]
"""Takes what a step prints, stdout and stderr together, in any split. Called in the event loop."""


class ImagePullError(EngineError):
    """An image is not on the engine and its registry does not give it. The text ends with the registry's reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    image_id: str
    env: Mapping[str, str] = field(repr=False)
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryLogin:
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A folder that another image has, copied over the step's files before its command runs."""

    image: str
    path: str
    into: str
    """The folder in which the copied one appears under its own name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file of the control plane's host that the step finds at `path`, readable by root only."""

    source: Path
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The image that a step's files become."""

    name: str
    entrypoint: tuple[str, ...]
    """What its containers run, as root; the step's own command is not kept."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Added to the variables of the image below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildStep:
    build_id: str
    """`[a-z0-9-]+`; in the container's name."""
    image: str
    """Name or id."""
    command: tuple[str, ...]
    """Program and arguments, instead of the image's own; run as root. Anyone with access to the engine reads them."""
    limits: Limits
    capabilities: tuple[str, ...] = ()
    result: Result | None = None
    """None throws the files away."""
    files: tuple[File, ...] = ()
    uploads: tuple[Upload, ...] = ()
    trees: tuple[Tree, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedImage:
    name: str
    created_at: datetime


class Builds(Protocol):
    """Every verb raises EngineUnavailable when the engine does not answer, and EngineError when it refuses."""

    async def find_image(self, image: str) -> ImageFacts | None:
        """An image that is on the engine under exactly this name (`:latest` if it has no tag)."""
        ...

    async def pull(self, image: str, login: RegistryLogin | None = None, *, report: Report = lambda line: None) -> None:
        """Fetch an image from its registry. `report` takes how far it is, about every second.

        A pull whose caller is cancelled may go on to its end.
        Raises: ImagePullError, EngineOutOfSpace.
        """
        ...

    async def run(self, step: BuildStep, on_output: OnOutput) -> int:
        """Run the step and return its exit code; the result is made only if that is 0.

        Nothing but cancelling it bounds the command. Its container is gone afterwards, however it ended, unless the
        engine does not let it go; `remove_containers` removes it then.
        Raises: ImageMissing, EngineOutOfSpace.
        """
        ...

    async def name_image(self, image: str, name: str) -> None:
        """Give an image one more name. Raises: ImageMissing."""
        ...

    async def images(self, repository: str) -> list[NamedImage]:
        """Names of the form `<repository>:<tag>`."""
        ...

    async def remove_unnamed_images(self, *, older_than_s: float) -> None:
        """Results of this installation whose name another result took. One that a container needs stays.

        A young one may be about to get its name.
        """
        ...

    async def remove_containers(self) -> None:
        """Those of steps of this installation that are not under way here: an earlier control plane left them, or the
        engine did not let them go. Safe to repeat.
        """
        ...

    async def aclose(self) -> None: ...
