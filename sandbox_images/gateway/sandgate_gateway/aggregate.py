"""The one server that clients see: names, lists, capabilities and instructions of all servers together."""

import asyncio
from collections.abc import Iterable
from typing import Any

import orjson

from sandgate_gateway import discovery
from sandgate_gateway.cursors import Cursors
from sandgate_gateway.discovery import Discovery
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.lists import Item, Kind
from sandgate_gateway.naming import Naming
from sandgate_gateway.protocol import GATEWAY_INFO, INVALID_PARAMS, META_SERVER_INFO, Era, carried_capabilities
from sandgate_gateway.routes import Route, Routes
from sandgate_gateway.servers.fleet import Fleet
from sandgate_gateway.servers.server import Server

STARTING_SERVERS_WAIT_S = 5.0
"""How long a list waits for servers that are still starting; they are announced by list_changed afterwards."""

PAGE_SIZE = 1000

MAX_INSTRUCTIONS = 16_000
"""Characters of all instructions together; each server has an equal share."""

_ALL_CAPABILITIES: dict[str, Any] = {
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "resources": {"listChanged": True, "subscribe": True},
    "completions": {},
}


class Aggregate:
    """A view on the fleet; computed anew only when what the servers offer has changed."""

    def __init__(self, fleet: Fleet, cursor_key: bytes) -> None:
        self.discovers = False
        """Whether clients are given the tools of discovery instead of all tools."""
        self._naming: Naming = "auto"
        self._fleet = fleet
        self._cursors = Cursors(cursor_key)
        self._routes: Routes | None = None
        self._discovery: Discovery | None = None
        self._pages: dict[tuple[Kind, Era, int], tuple[Routes, Result]] = {}

    def configure(self, naming: Naming, *, discovers: bool) -> None:
        self._naming, self.discovers = naming, discovers
        self._routes = None

    # Routing

    @property
    def routes(self) -> Routes:
        if self._routes is None or self._routes.version != self._fleet.version:
            self._routes = Routes(self._fleet.version, self._fleet.servers, self._naming)
            self._discovery = None
            self._pages.clear()
        return self._routes

    @property
    def discovery(self) -> Discovery:
        """Search over the tools as they are now."""
        routes = self.routes
        if self._discovery is None:
            self._discovery = Discovery(routes)
        return self._discovery

    async def tool(self, name: object) -> Route:
        """Raises: RpcError if there is none of that name, with the reason where it is known."""
        if isinstance(name, str) and (found := self.routes.tools.get(name)):
            return found
        await self.refresh("tools", patiently=True)
        if isinstance(name, str) and (found := self.routes.tools.get(name)):
            return found
        if not isinstance(name, str):
            raise RpcError(INVALID_PARAMS, "tool name missing")
        if server := self.routes.failed_server("tools", name):
            raise server.failure()
        if server := self.routes.hiding_server(name):
            raise RpcError(
                INVALID_PARAMS,
                f"Tool {name!r} of server {server.name!r} is not allowed in this sandbox",
                {"server": server.name},
            )
        raise RpcError(INVALID_PARAMS, f"Unknown tool: {name}")

    async def prompt(self, name: object) -> Route:
        """Raises: RpcError if there is none of that name."""
        if isinstance(name, str) and (found := self.routes.prompts.get(name)):
            return found
        await self.refresh("prompts", patiently=True)
        if isinstance(name, str) and (found := self.routes.prompts.get(name)):
            return found
        if not isinstance(name, str):
            raise RpcError(INVALID_PARAMS, "prompt name missing")
        if server := self.routes.failed_server("prompts", name):
            raise server.failure()
        raise RpcError(INVALID_PARAMS, f"Unknown prompt: {name}")

    async def resource(self, uri: str) -> list[tuple[Server, str]]:
        """The servers that list a URI, or a template for it, with the URI each uses itself, the best first. Raises:
        RpcError if the one server that listed it has failed."""
        if not (found := self._with_servers(self.routes.uris.resolve(uri))):
            await self.refresh("resources", patiently=True)
            await self.refresh("resourceTemplates")
            found = self._with_servers(self.routes.uris.resolve(uri))
        if not found and (server := self.routes.failed_server("resources", uri)):
            raise server.failure()
        return found

    def servers_with_resources(self) -> list[Server]:
        """Those that may know a URI nobody lists: links need not be listed."""
        return [server for server in self._fleet.servers if "resources" in (server.capabilities or {})]

    async def template(self, template: str) -> list[tuple[Server, str]]:
        if not (found := self._with_servers(self.routes.uris.resolve_template(template))):
            await self.refresh("resourceTemplates", patiently=True)
            found = self._with_servers(self.routes.uris.resolve_template(template))
        return found

    def _with_servers(self, pairs: Iterable[tuple[str, str]]) -> list[tuple[Server, str]]:
        return [(server, uri) for name, uri in pairs if (server := self._fleet.get(name)) is not None]

    # Lists

    async def list_page(self, kind: Kind, cursor: object, era: Era) -> Result:
        """One page of the merged list. A server that does not answer in time is missing or stale in it, and says so in
        its status. Raises: RpcError for a cursor that is not ours."""
        position = 0 if cursor is None else self._cursors.open(kind, cursor)
        if not self._is_constant(kind):
            await self.refresh(kind)
        routes = self.routes
        cached = self._pages.get((kind, era, position))
        if cached is not None and cached[0] is routes:
            return cached[1]
        page = self._page(kind, position, era)
        self._pages[kind, era, position] = (routes, page)
        return page

    async def refresh(self, kind: Kind, *, patiently: bool = False) -> None:
        """Ask the servers whose list is no longer good. `patiently` waits for those that are listed from memory, too:
        the server itself may have what is looked for."""
        await self._wait_for_start(patiently=patiently)
        stale = [server for server in self._fleet.servers if server.needs_refresh(kind)]
        if stale:
            async with asyncio.TaskGroup() as group:
                for server in stale:
                    group.create_task(server.refresh(kind))

    async def _wait_for_start(self, *, patiently: bool = False) -> None:
        """Returns when no server is starting for the first time any more, or after STARTING_SERVERS_WAIT_S."""
        starting = [
            server
            for server in self._fleet.servers
            if server.state == "starting" and not server.restarts and (patiently or not server.is_listed)
        ]
        if starting:
            try:
                async with asyncio.timeout(STARTING_SERVERS_WAIT_S):
                    for server in starting:
                        await server.settled()
            except TimeoutError:
                return

    def _page(self, kind: Kind, position: int, era: Era) -> Result:
        items = self.visible(kind)
        if kind == "tools" and era == "modern" and not self.discovers:
            # Clients must drop a tool with an invalid annotation (2026-07-28, server/tools#x-mcp-header).
            items = [route.item for route in self.routes.tools.values() if route.annotations.problem is None]
        value: dict[str, Any] = {kind: items[position : position + PAGE_SIZE]}
        if position + PAGE_SIZE < len(items):
            value["nextCursor"] = self._cursors.seal(kind, position + PAGE_SIZE)
        if era == "modern":
            value = {**self._cache_members(kind), **value}
        return Result(value, orjson.dumps(value))

    def visible(self, kind: Kind) -> list[Item]:
        """The merged list as clients get it."""
        return discovery.TOOLS if self._is_constant(kind) else self.routes.items(kind)

    def _is_constant(self, kind: Kind) -> bool:
        return self.discovers and kind == "tools"

    def _cache_members(self, kind: Kind) -> dict[str, Any]:
        """What 2026-07-28 requires of a list (SEP-2549): the shortest life of any part, public if all are."""
        listings = [(server.era, server.catalogue.listing(kind)) for server in self._fleet.servers]
        modern = bool(listings) and all(era == "modern" for era, _ in listings)
        return {
            "resultType": "complete",
            "ttlMs": min(listing.ttl_ms for _, listing in listings) if modern else 0,
            "cacheScope": "public" if modern and all(listing.is_public for _, listing in listings) else "private",
            "_meta": {META_SERVER_INFO: GATEWAY_INFO},
        }

    # The gateway as a server

    def capabilities(self, era: Era) -> dict[str, Any]:
        """What the servers can do together. While one is starting that nobody knows everything is promised: it may
        bring it."""
        union: dict[str, Any] = {"tools": {"listChanged": True}}
        extensions: dict[str, Any] = {}
        for server in self._fleet.servers:
            if server.capabilities is not None:
                declared = carried_capabilities(server.capabilities)
                extensions |= declared.get("extensions", {})
            else:
                declared = _ALL_CAPABILITIES | {"logging": {}} if server.state == "starting" else {}
            union |= {capability: value for capability, value in _ALL_CAPABILITIES.items() if capability in declared}
            if "logging" in declared:
                union["logging"] = {}
        if extensions:
            union["extensions"] = extensions
        return union

    def instructions(self) -> str:
        """The instructions of all servers, each under its name, each cut to an equal share of MAX_INSTRUCTIONS."""
        given = [
            (server.name, server.instructions.strip())
            for server in self._fleet.servers
            if isinstance(server.instructions, str)
        ]
        given = [(name, text) for name, text in given if text]
        share = MAX_INSTRUCTIONS // len(given) if given else 0
        parts = [f"## {name}\n{text if len(text) <= share else text[: share - 1] + '…'}" for name, text in given]
        if self.discovers:
            parts.insert(0, discovery.instructions(server.name for server in self._fleet.servers))
        return "\n\n".join(parts)
