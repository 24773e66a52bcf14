"""Images that somebody's credentials fetch from a registry: nobody else gets them by the name they have there.

The engine puts what it pulls under that name, which is taken away again at once. Until then nobody looks for the image,
and what is to be taken away is written down before the pull, for whoever comes after a process that was killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

from app.engines.builds import ImageFacts, ImagePullError, RegistryLogin
from app.engines.interface import Engine
from app.errors import EngineError
from app.templates.layers import Layers
from app.templates.planning import layer_key
from app.templates.store import TemplateStore

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
"""Starts a task under its name, and owns it."""


class PrivatePulls:
    def __init__(self, store: TemplateStore, engine: Engine, layers: Layers, spawn: Spawn) -> None:
        self._store = store
        self._engine = engine
        self._layers = layers
        self._spawn = spawn
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._under_way: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def turn(self, image: str, say: Callable[[str], None] = lambda line: None) -> AsyncIterator[None]:
        """While entered nobody else looks for an image of this name or fetches it with credentials, and it has no name
        that is not for all. Tells when it has to wait. Raises: EngineError.
        """
        word = _last_word(image)
        lock = self._turns.setdefault(word, asyncio.Lock())
        if lock.locked() or word in self._under_way:
            say(f"waiting for another build that fetches an image named {word}")
        async with lock:
            if (pull := self._under_way.get(word)) is not None:
                await asyncio.wait([pull])  # of a build that was ended meanwhile
            for left, earlier in (await self._store.private_names()).items():
                if _last_word(left) == word:
                    await self._give_name_back(left, earlier)
            yield

    async def pull(self, image: str, login: RegistryLogin) -> ImageFacts:
        """Fetch an image; it is found by its id from then on. To be called in its `turn`.

        It goes on if the caller goes away, as the engine does, and has its turn until the end. Raises: EngineError.
        """
        outcome: asyncio.Future[ImageFacts] = asyncio.get_running_loop().create_future()
        # Whoever waited for it may be gone by the time it fails.
        outcome.add_done_callback(lambda done: done.cancelled() or done.exception())
        word = _last_word(image)
        task = self._under_way[word] = self._spawn(self._settle(image, login, outcome), f"pull {image}")
        task.add_done_callback(lambda _: self._under_way.pop(word))
        return await asyncio.shield(outcome)

    async def give_names_back(self) -> None:
        """Take away the names that a process which was killed left. Raises: EngineError."""
        for image in await self._store.private_names():
            word = _last_word(image)
            if word not in self._turns and word not in self._under_way:  # else it is done by whoever has the turn
                async with self.turn(image):
                    pass

    async def _settle(self, image: str, login: RegistryLogin, outcome: asyncio.Future[ImageFacts]) -> None:
        try:
            pulled = await self._pull(image, login)
        except Exception as error:  # noqa: BLE001 - it is the caller's to handle, whatever it is
            outcome.set_exception(error)
        except BaseException:
            outcome.cancel()
            raise
        else:
            outcome.set_result(pulled)

    async def _pull(self, image: str, login: RegistryLogin) -> ImageFacts:
        builds = self._engine.builds
        earlier = None
        if await builds.find_image(image) is not None:
            earlier = await self._named_as_layer(image, layer_key("before a private pull", image))
        await self._store.add_private_name(image, earlier)
        try:
            await builds.pull(image, login)
        except ImagePullError:
            await self._give_name_back(image, earlier)
            raise
        facts = await builds.find_image(image)
        if facts is None:
            raise EngineError(f"Image {image} was pulled and is not on the engine.")
        await self._named_as_layer(image, layer_key("pulled", facts.image_id))
        await self._give_name_back(image, earlier)
        return facts

    async def _named_as_layer(self, image: str, key: str) -> str:
        """One more name for an image, under which it stays until no build has used it for a while."""
        name = self._layers.name(key)
        await self._layers.made(key)
        await self._engine.builds.name_image(image, name)
        return name

    async def _give_name_back(self, image: str, earlier: str | None) -> None:
        """To what had it before somebody's pull, if anything. Safe to repeat."""
        builds = self._engine.builds
        pulled = await builds.find_image(image)
        before = await builds.find_image(earlier) if earlier is not None else None
        is_ours = pulled is not None and (before is None or before.image_id != pulled.image_id)
        # Not only named over: it would still be found by its digest.
        if is_ours and not await self._engine.remove_image(image):
            return  # a container has it: whoever has the next turn tries again
        if before is not None and earlier is not None:
            await builds.name_image(earlier, image)
        await self._store.forget_private_name(image)


def _last_word(image: str) -> str:
    """Without registry, folders, tag and digest: what all ways to write an image's name have in common."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]
