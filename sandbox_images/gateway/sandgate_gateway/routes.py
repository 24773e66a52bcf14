"""The merged lists of all servers, and the way from each name and URI in them back to its server."""

from collections.abc import Callable, Iterable
from typing import Any

from sandgate_gateway import naming
from sandgate_gateway.headers import Annotations
from sandgate_gateway.lists import KEYS, Item, Kind
from sandgate_gateway.naming import Naming
from sandgate_gateway.rewriting import rewrite_ui_resource
from sandgate_gateway.servers.server import Server
from sandgate_gateway.uris import UriMap


class Route:
    """One tool or prompt: whose it is and what the server itself calls it."""

    __slots__ = ("_annotations", "item", "own", "server")

    def __init__(self, server: Server, own: str, item: Item) -> None:
        self.server = server
        self.own = own
        self.item = item
        """As clients see it."""
        self._annotations: Annotations | None = None

    @property
    def annotations(self) -> Annotations:
        """Of a tool's input schema; looked for once."""
        if self._annotations is None:
            self._annotations = Annotations(self.item.get("inputSchema"))
        return self._annotations


class Routes:
    """Names and URIs of the sandbox at one version of its lists. Servers come in the order of the configuration."""

    def __init__(self, version: int, servers: Iterable[Server], naming_: Naming) -> None:
        self.version = version
        self._servers = list(servers)
        self._naming = naming_
        listed = [server for server in self._servers if not server.catalogue.is_withdrawn]
        self.uris = UriMap(
            {server.name: server.catalogue.items("resources") for server in listed},
            {server.name: server.catalogue.items("resourceTemplates") for server in listed},
        )
        self.tools = {route.item["name"]: route for route in self._routes("tools", self._tools_of, self._tool)}
        self.prompts = {route.item["name"]: route for route in self._routes("prompts", _prompts_of, _prompt)}
        self._missing: dict[Kind, dict[str, Server]] = {}

    def items(self, kind: Kind) -> list[Item]:
        """The merged list: in the order of the servers, then of each server."""
        match kind:
            case "tools":
                return [route.item for route in self.tools.values()]
            case "prompts":
                return [route.item for route in self.prompts.values()]
            case _:
                return [
                    _with_key(kind, item, self.uris.expose(server.name, uri))
                    for server in self._servers
                    for uri, item in server.catalogue.items(kind).items()
                ]

    def failed_server(self, kind: Kind, key: str) -> Server | None:
        """The server whose failure took this name or URI off the list; None if it is not for such a reason."""
        if kind not in self._missing:
            self._missing[kind] = {
                name: server
                for server in self._servers
                for own in server.catalogue.former_items(kind)
                for name in (own, *_usual_names(kind, server, own))
            }
        return self._missing[kind].get(key)

    def hiding_server(self, tool: str) -> Server | None:
        """The server that has this tool but whose rules take it away in this sandbox."""
        for server in self._servers:
            for own in server.catalogue.items("tools"):
                if not server.definition.tools.has(own) and tool in _usual_names("tools", server, own):
                    return server
        return None

    def _routes(
        self, kind: Kind, items_of: Callable[[Server], dict[str, Item]], as_seen: Callable[[Server, str, Item], Item]
    ) -> Iterable[Route]:
        items = {server.name: items_of(server) for server in self._servers}
        renamed: dict[naming.Item, str] = {}
        if kind == "tools":
            for server in self._servers:
                renamed |= {(server.name, own): new for own, new in server.definition.tools.rename.items()}
        names = naming.expose(items, self._naming, renamed)
        for server in self._servers:
            for own, item in items[server.name].items():
                seen = as_seen(server, own, item)
                yield Route(server, own, _with_key(kind, seen, names[server.name, own]))

    def _tools_of(self, server: Server) -> dict[str, Item]:
        rules = server.definition.tools
        return {own: item for own, item in server.catalogue.items("tools").items() if rules.has(own)}

    def _tool(self, server: Server, own: str, item: Item) -> Item:
        item = server.definition.tools.described(own, item)
        if self.uris.is_identity:
            return item
        return rewrite_ui_resource(item, lambda uri: self.uris.expose(server.name, uri))


def _usual_names(kind: Kind, server: Server, own: str) -> tuple[str, str]:
    name = server.definition.tools.name_of(own) if kind == "tools" else own
    return naming.usual_names((server.name, own), name)


def _prompts_of(server: Server) -> dict[str, Item]:
    return server.catalogue.items("prompts")


def _prompt(_: Server, __: str, item: Item) -> Item:
    return item


def _with_key(kind: Kind, item: dict[str, Any], value: str) -> Item:
    key = KEYS[kind]
    return item if item[key] == value else {**item, key: value}
