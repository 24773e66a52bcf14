"""Build steps without containers: what a step does is what the test says. Keeps the whole contract."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

from app.engines.builds import (
    BuildStep,
    ImageFacts,
    ImagePullError,
    NamedImage,
    OnOutput,
    RegistryLogin,
)
from app.engines.jobs import Report
from app.errors import ImageMissing

Behaviour = Callable[[BuildStep, OnOutput], Awaitable[int]]
"""Plays a step: prints what it likes and gives the exit code."""


async def _succeed(step: BuildStep, on_output: OnOutput) -> int:
    return 0


class InMemoryBuilds:
    def __init__(self, images: dict[str, Mapping[str, bytes]], answer: Callable[[str], Awaitable[None]]) -> None:
        """`images` is the engine's own, and `answer` what each of its verbs awaits first."""
        self.behave: Behaviour = _succeed
        self.steps: list[BuildStep] = []
        """Every step that was begun, in order."""
        self.labels: dict[str, Mapping[str, str]] = {}
        """Of images, by name; what is not there has none."""
        self.registry: dict[str, Mapping[str, bytes]] = {}
        """What can be pulled."""
        self.logins: list[RegistryLogin | None] = []
        """Those that came with pulls."""
        self.pulled: list[str] = []
        """Names that were fetched, in order."""
        self.may_pull = asyncio.Event()
        """While cleared, pulls go on and on."""
        self.may_pull.set()
        self._images = images
        self._answer = answer
        self._pulling: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._ids: dict[str, str] = {}
        """Of images with several names, or with the name of an older one; that of another is made of its name."""

    async def find_image(self, image: str) -> ImageFacts | None:
        await self._answer(f"look for image {image}")
        if image not in self._images:
            return None
        return ImageFacts(image_id=self._id(image), env={}, labels=self.labels.get(image, {}))

    async def pull(self, image: str, login: RegistryLogin | None = None, *, report: Report = lambda line: None) -> None:
        await self._answer(f"pull image {image}")
        self.logins.append(login)
        report("1 of 2 layers")
        pulling = asyncio.create_task(self._fetch(image), name=f"pull {image}")
        self._pulling.add(pulling)
        pulling.add_done_callback(self._pulling.discard)
        await asyncio.shield(pulling)

    async def _fetch(self, image: str) -> None:
        """In a task of its own: cancelling who asked for it ends no pull of a real engine either."""
        await self.may_pull.wait()
        if image not in self.registry:
            raise ImagePullError(f"Image {image} cannot be pulled: no such image")
        self.pulled.append(image)
        if self._images.get(image, self.registry[image]) != self.registry[image]:
            self._ids[image] = f"sha256:{image}#{len(self.pulled)}"
        self._images[image] = self.registry[image]

    async def run(self, step: BuildStep, on_output: OnOutput) -> int:
        await self._answer(f"make a container of build {step.build_id}")
        below = self._find(step.image)
        if below is None:
            raise ImageMissing(step.image)
        files, labels = self._images[below], self.labels.get(below, {})
        self.steps.append(step)
        self._under_way += 1
        try:
            code = await self.behave(step, on_output)
            await asyncio.sleep(0)
        finally:
            self._under_way -= 1
        if code == 0 and step.result is not None:
            self._images[step.result.name] = files
            self.labels[step.result.name] = labels
        return code

    async def name_image(self, image: str, name: str) -> None:
        await self._answer(f"name image {name}")
        there = self._find(image)
        if there is None:
            raise ImageMissing(image)
        self._images[name] = self._images[there]
        self._ids[name] = self._id(there)
        self.labels[name] = self.labels.get(there, {})

    async def images(self, repository: str) -> list[NamedImage]:
        await self._answer(f"list images of {repository}")
        made = datetime(2026, 1, 1, tzinfo=UTC)
        return [NamedImage(name=name, created_at=made) for name in self._images if name.startswith(f"{repository}:")]

    async def remove_unnamed_images(self, *, older_than_s: float) -> None:
        await self._answer("remove images without a name")

    async def remove_containers(self) -> None:
        await self._answer("remove containers of image builds")

    async def aclose(self) -> None:
        return

    @property
    def is_idle(self) -> bool:
        """Whether no step's container is there."""
        return self._under_way == 0

    def _find(self, image: str) -> str | None:
        """A name of what is named by name or id."""
        return next((name for name in self._images if image in (name, self._id(name))), None)

    def _id(self, image: str) -> str:
        return self._ids.get(image, f"sha256:{image}")
