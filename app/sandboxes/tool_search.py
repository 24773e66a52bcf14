"""Lets the catalog's search find servers by the tools that they were seen to have."""

from __future__ import annotations

import asyncio

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.catalog import Catalog
from app.errors import DatabaseLocked
from app.sandboxes.server_lists import tools_in
from app.sandboxes.tool_memory import ToolMemory

_INTERVAL_S = 10.0

_log = structlog.get_logger()


class ToolSearch:
    def __init__(self, memory: ToolMemory, catalog: Catalog, *, interval_s: float = _INTERVAL_S) -> None:
        self._memory = memory
        self._catalog = catalog
        self._interval_s = interval_s

    async def load(self) -> None:
        """Take over what is known. What a sandbox showed counts for more than a trial with made-up options."""
        async for server, content in self._memory.rehearsed.all():
            self.put(server, content)
        async for server, content in self._memory.all():
            self.put(server, content)

    async def keep(self) -> None:
        """Take over what is known, and what another process comes to know by trying servers; until cancelled."""
        revision: object = None
        while True:
            try:
                found = await self._memory.rehearsed.revision()
                if found != revision:
                    await self.load()
                    revision = found
            except (SQLAlchemyError, DatabaseLocked, OSError) as error:
                _log.warning("tools_not_searchable", reason=type(error).__name__)
            await asyncio.sleep(self._interval_s)

    def put(self, server: str, content: bytes) -> None:
        """`server` by any of its names, with what it listed."""
        if (definition := self._catalog.find(server)) is not None:
            self._catalog.remember_tools(definition.key, tools_in(content))
