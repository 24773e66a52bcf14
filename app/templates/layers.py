"""Images that steps have made and later builds may go on from, named by what went into them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from app.engines.interface import Engine
from app.templates.store import TemplateStore

KEEP_UNUSED = timedelta(days=7)
_YOUNG_S = 3600.0


class Layers:
    def __init__(self, store: TemplateStore, engine: Engine, *, namespace: str, now: Callable[[], datetime]) -> None:
        self.repository = f"{namespace}/layer"
        self._store = store
        self._engine = engine
        self._now = now

    def name(self, key: str) -> str:
        return f"{self.repository}:{key}"

    async def find(self, key: str) -> str | None:
        """The image for a key, which counts as used from then on."""
        image = self.name(key)
        if await self._engine.builds.find_image(image) is None:
            return None
        await self._store.layer_used(image, self._now())
        return image

    async def made(self, key: str) -> None:
        await self._store.layer_used(self.name(key), self._now())

    async def remove_superfluous(self) -> None:
        """Layers that no build has used for a week, images that were given up, and those that were made anew.

        A template's own image stays, and so does what it stands on. One that a container needs is tried again later.
        """
        used = await self._store.layers()
        for image in await self._engine.builds.images(self.repository):
            # One without a row was made by a build that was killed just then.
            used.setdefault(image.name, image.created_at)
        oldest = self._now() - KEEP_UNUSED
        for name, used_at in used.items():
            if used_at < oldest and await self._engine.remove_image(name):
                await self._store.forget_layer(name)
        await self._engine.builds.remove_unnamed_images(older_than_s=_YOUNG_S)
