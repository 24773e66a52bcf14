"""All watchers of the agent: those of a stream live with it, those that are polled until they are removed."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Unpack

from sandgate_agent.acting_as import FileThreads
from sandgate_agent.background_tasks import BackgroundTasks
from sandgate_agent.errors import NotFound
from sandgate_agent.filesystem.watcher import FilesystemEvent, Watcher, WatchOptions


class Watchers:
    def __init__(self, threads: FileThreads, tasks: BackgroundTasks) -> None:
        self._threads = threads
        self._tasks = tasks
        self._polled: dict[str, Watcher] = {}

    @asynccontextmanager
    async def watching(self, **options: Unpack[WatchOptions]) -> AsyncIterator[Watcher]:
        """Raises: NotFound, InvalidArgument, ResourceExhausted."""
        watcher = Watcher(self._threads, **options)
        try:
            await watcher.start(self._tasks)
            yield watcher
        finally:
            await watcher.close()

    async def create(self, **options: Unpack[WatchOptions]) -> str:
        """Answers an id. Raises: NotFound, InvalidArgument, ResourceExhausted."""
        watcher = Watcher(self._threads, **options)
        await watcher.start(self._tasks)
        identifier = os.urandom(16).hex()
        self._polled[identifier] = watcher
        return identifier

    async def events(self, identifier: str) -> list[FilesystemEvent]:
        """What has happened since the last time. Raises: NotFound."""
        return await self._find(identifier).take_events()

    async def remove(self, identifier: str) -> None:
        """Raises: NotFound."""
        watcher = self._find(identifier)
        del self._polled[identifier]
        await watcher.close()

    async def aclose(self) -> None:
        while self._polled:
            _, watcher = self._polled.popitem()
            await watcher.close()

    def _find(self, identifier: str) -> Watcher:
        watcher = self._polled.get(identifier)
        if watcher is None:
            raise NotFound(f"watcher with id {identifier} not found")
        return watcher
