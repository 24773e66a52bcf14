"""Fetches the images of MCP servers that are not on the engine yet: each once, however many sandboxes wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from app.engines.builds import ImagePullError
from app.engines.interface import Engine
from app.engines.jobs import Report
from app.errors import EngineError

_log = structlog.get_logger()


@dataclass(slots=True)
class _Pull:
    done: asyncio.Future[str]
    reports: list[Report] = field(default_factory=list)
    last: str | None = None


class ImagePulls:
    def __init__(self, engine: Engine, spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]) -> None:
        """`spawn` starts a task under its name, and owns it."""
        self._engine = engine
        self._spawn = spawn
        self._under_way: dict[str, _Pull] = {}

    async def ensure(self, image: str, report: Report) -> str:
        """Make sure that an image is on the engine; gives the name to run exactly it by (`Engine.pin_image`).

        A caller that is cancelled leaves the pull running. Raises: ImagePullError, EngineError.
        """
        if (pinned := await self._engine.pin_image(image)) is not None:
            return pinned
        if (pull := self._under_way.get(image)) is None:
            pull = self._under_way[image] = _Pull(asyncio.get_running_loop().create_future())
            # Whoever waited for it may be gone by the time it fails.
            pull.done.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._spawn(self._pull(image, pull), f"pull {image}")
        pull.reports.append(report)
        if pull.last is not None:
            report(pull.last)
        return await asyncio.shield(pull.done)

    async def _pull(self, image: str, pull: _Pull) -> None:
        def tell(line: str) -> None:
            pull.last = line
            _log.info("image_pulling", image=image, progress=line)
            for report in pull.reports:
                report(line)

        try:
            await self._engine.builds.pull(image, report=tell)
            pinned = await self._engine.pin_image(image)
            if pinned is None:
                raise ImagePullError(f"Image {image} was pulled and is not on the engine under that name.")
        except EngineError as error:
            pull.done.set_exception(error)
        except asyncio.CancelledError:
            pull.done.cancel()
            raise
        except Exception as error:
            pull.done.set_exception(error)
            raise
        else:
            _log.info("image_pulled", image=image, pinned=pinned)
            pull.done.set_result(pinned)
        finally:
            del self._under_way[image]
