"""The one server that clients see: names, lists, capabilities and instructions of all servers together."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from sandgate_gateway import naming
from sandgate_gateway.cursors import Cursors
from sandgate_gateway.headers import find_invalid_header_annotation
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.naming import Naming
from sandgate_gateway.protocol import GATEWAY_INFO, INVALID_PARAMS, META_SERVER_INFO, Era, carried_capabilities
from sandgate_gateway.rewriting import rewrite_ui_resource
from sandgate_gateway.servers.catalogue import Kind
from sandgate_gateway.servers.fleet import Fleet
from sandgate_gateway.servers.server import Server
from sandgate_gateway.uris import UriMap

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


@dataclass(frozen=True)
class Routes:
    """Names and URIs of the sandbox at one version of its lists."""

    version: int
    tools: dict[str, tuple[Server, str]]
    prompts: dict[str, tuple[Server, str]]
    tool_names: dict[naming.Item, str]
    prompt_names: dict[naming.Item, str]
    uris: UriMap


class Aggregate:
    """A view on the fleet; computed anew only when what the servers offer has changed."""

    def __init__(self, fleet: Fleet, cursor_key: bytes) -> None:
        self.naming: Naming = "auto"
        self._fleet = fleet
        self._cursors = Cursors(cursor_key)
        self._routes: Routes | None = None
        self._pages: dict[tuple[Kind, Era, int], tuple[int, Result]] = {}

    # Routing

    @property
    def routes(self) -> Routes:
        if self._routes is None or self._routes.version != self._fleet.version:
            self._routes = self._make_routes()
            self._pages.clear()
        return self._routes

    def reset(self) -> None:
        """The configuration has changed."""
        self._routes = None

    async def tool(self, name: object) -> tuple[Server, str]:
        """The server and its own name of a tool. Raises: RpcError if there is none."""
        return await self._named("tools", "tool", name)

    async def prompt(self, name: object) -> tuple[Server, str]:
        return await self._named("prompts", "prompt", name)

    async def _named(self, kind: Kind, word: str, name: object) -> tuple[Server, str]:
        table = self.routes.tools if kind == "tools" else self.routes.prompts
        if isinstance(name, str) and (found := table.get(name)):
            return found
        await self._refresh(kind)
        table = self.routes.tools if kind == "tools" else self.routes.prompts
        if isinstance(name, str) and (found := table.get(name)):
            return found
        raise RpcError(INVALID_PARAMS, f"Unknown {word}: {name}" if isinstance(name, str) else f"{word} name missing")

    def tool_schema(self, server: Server, own_name: str) -> Any:
        """The input schema as the server lists it; None for a tool it does not list."""
        return next((t.get("inputSchema") for t in server.catalogue.items("tools") if t.get("name") == own_name), None)

    async def resource(self, uri: str) -> list[tuple[Server, str]]:
        """The servers that list a URI, or a template for it, with the URI each uses itself, the best first."""
        if not (found := self._with_servers(self.routes.uris.resolve(uri))):
            await self._refresh("resources")
            await self._refresh("resourceTemplates")
            found = self._with_servers(self.routes.uris.resolve(uri))
        return found

    def servers_with_resources(self) -> list[Server]:
        """Those that may know a URI nobody lists: links need not be listed."""
        return [server for server in self._fleet.servers if _declares(server, "resources")]

    async def template(self, template: str) -> list[tuple[Server, str]]:
        if not (found := self._with_servers(self.routes.uris.resolve_template(template))):
            await self._refresh("resourceTemplates")
            found = self._with_servers(self.routes.uris.resolve_template(template))
        return found

    def _with_servers(self, pairs: Iterable[tuple[str, str]]) -> list[tuple[Server, str]]:
        return [(server, uri) for name, uri in pairs if (server := self._fleet.get(name)) is not None]

    def _make_routes(self) -> Routes:
        servers = {server.name: server for server in self._fleet.servers}
        tool_names = naming.expose(
            {name: _names(server, "tools", "name") for name, server in servers.items()}, self.naming
        )
        prompt_names = naming.expose(
            {name: _names(server, "prompts", "name") for name, server in servers.items()}, self.naming
        )
        return Routes(
            version=self._fleet.version,
            tools={exposed: (servers[server], own) for (server, own), exposed in tool_names.items()},
            prompts={exposed: (servers[server], own) for (server, own), exposed in prompt_names.items()},
            tool_names=tool_names,
            prompt_names=prompt_names,
            uris=UriMap(
                {name: _names(server, "resources", "uri") for name, server in servers.items()},
                {name: _names(server, "resourceTemplates", "uriTemplate") for name, server in servers.items()},
            ),
        )

    # Lists

    async def list_page(self, kind: Kind, cursor: object, era: Era) -> Result:
        """One page of the merged list. A server that does not answer in time is missing or stale in it, and says so in
        its status. Raises: RpcError for a cursor that is not ours."""
        position = 0 if cursor is None else self._cursors.open(kind, cursor)
        await self._refresh(kind)
        version = self.routes.version
        cached = self._pages.get((kind, era, position))
        if cached is not None and cached[0] == version:
            return cached[1]
        result = self._page(kind, position, era)
        self._pages[kind, era, position] = (version, result)
        return result

    async def _refresh(self, kind: Kind) -> None:
        await self.wait_for_start()
        stale = [server for server in self._fleet.servers if server.needs_refresh(kind)]
        if stale:
            async with asyncio.TaskGroup() as group:
                for server in stale:
                    group.create_task(server.refresh(kind))

    async def wait_for_start(self) -> None:
        """Returns when no server is starting for the first time any more, or after STARTING_SERVERS_WAIT_S."""
        starting = [s for s in self._fleet.servers if s.state == "starting" and not s.restarts]
        if starting:
            try:
                async with asyncio.timeout(STARTING_SERVERS_WAIT_S):
                    for server in starting:
                        await server.settled()
            except TimeoutError:
                return

    def _page(self, kind: Kind, position: int, era: Era) -> Result:
        items = self.merged(kind, era)
        value: dict[str, Any] = {kind: items[position : position + PAGE_SIZE]}
        if position + PAGE_SIZE < len(items):
            value["nextCursor"] = self._cursors.seal(kind, position + PAGE_SIZE)
        if era == "modern":
            value = {**self._cache_members(kind), **value}
        return Result(value, orjson.dumps(value))

    def merged(self, kind: Kind, era: Era) -> list[dict[str, Any]]:
        """In the order of the configuration, then of the server."""
        routes = self.routes
        merged: list[dict[str, Any]] = []
        for server in self._fleet.servers:
            seen: set[str] = set()
            for item in server.catalogue.items(kind):
                key = item.get(_KEYS[kind])
                if isinstance(key, str) and key not in seen:
                    seen.add(key)
                    if (
                        kind != "tools"
                        or era == "legacy"
                        or not find_invalid_header_annotation(item.get("inputSchema"))
                    ):
                        merged.append(_exposed(kind, server, item, key, routes))
        return merged

    def _cache_members(self, kind: Kind) -> dict[str, Any]:
        """What 2026-07-28 requires of a list (SEP-2549): the shortest life of any part, public if all are."""
        listings = [
            (server.connection.era if server.connection else "legacy", server.catalogue.listing(kind))
            for server in self._fleet.servers
        ]
        modern = bool(listings) and all(era == "modern" for era, _ in listings)
        return {
            "resultType": "complete",
            "ttlMs": min(listing.ttl_ms for _, listing in listings) if modern else 0,
            "cacheScope": "public" if modern and all(listing.is_public for _, listing in listings) else "private",
            "_meta": {META_SERVER_INFO: GATEWAY_INFO},
        }

    # The gateway as a server

    def capabilities(self, era: Era) -> dict[str, Any]:
        """What the servers can do together. While one is still starting everything is promised: it may bring it."""
        union: dict[str, Any] = {"tools": {"listChanged": True}}
        extensions: dict[str, Any] = {}
        for server in self._fleet.servers:
            declared = _ALL_CAPABILITIES | {"logging": {}} if server.state == "starting" else {}
            if server.connection is not None:
                declared = carried_capabilities(server.connection.capabilities)
                extensions |= declared.get("extensions", {})
            union |= {capability: value for capability, value in _ALL_CAPABILITIES.items() if capability in declared}
            if "logging" in declared:
                union["logging"] = {}
        if extensions:
            union["extensions"] = extensions
        return union

    def instructions(self) -> str:
        """The instructions of all servers, each under its name, each cut to an equal share of MAX_INSTRUCTIONS."""
        given = [
            (server.name, server.connection.instructions.strip())
            for server in self._fleet.servers
            if server.connection is not None and isinstance(server.connection.instructions, str)
        ]
        given = [(name, text) for name, text in given if text]
        share = MAX_INSTRUCTIONS // len(given) if given else 0
        return "\n\n".join(
            f"## {name}\n{text if len(text) <= share else text[: share - 1] + '…'}" for name, text in given
        )


_KEYS: dict[Kind, str] = {
    "tools": "name",
    "prompts": "name",
    "resources": "uri",
    "resourceTemplates": "uriTemplate",
}


def _names(server: Server, kind: Kind, key: str) -> list[str]:
    return [name for item in server.catalogue.items(kind) if isinstance(name := item.get(key), str)]


def _exposed(kind: Kind, server: Server, item: dict[str, Any], key: str, routes: Routes) -> dict[str, Any]:
    if kind == "tools":
        name = routes.tool_names[server.name, key]
        item = (
            item if routes.uris.is_identity else rewrite_ui_resource(item, lambda u: routes.uris.expose(server.name, u))
        )
    elif kind == "prompts":
        name = routes.prompt_names[server.name, key]
    else:
        name = routes.uris.expose(server.name, key)
    return item if name == key else {**item, _KEYS[kind]: name}


def _declares(server: Server, capability: str) -> bool:
    return server.connection is not None and capability in server.connection.capabilities
