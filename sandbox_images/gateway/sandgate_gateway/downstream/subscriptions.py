"""Which client wants updates of which resource, and the subscriptions at the servers that follow from it."""

from collections.abc import Mapping

from sandgate_gateway.aggregate import Aggregate
from sandgate_gateway.jsonrpc import RpcError
from sandgate_gateway.protocol import INVALID_PARAMS
from sandgate_gateway.servers.fleet import Fleet
from sandgate_gateway.servers.server import Server

MAX_PER_CLIENT = 1000

SUBSCRIBE_TIMEOUT_S = 10.0
"""Of telling a server; the client waits for it."""


class Subscriptions:
    """A resource is subscribed at its server once, as long as at least one client wants it; if the server is replaced,
    at the next one of its name."""

    def __init__(self, aggregate: Aggregate, fleet: Fleet) -> None:
        self._aggregate = aggregate
        self._fleet = fleet
        self._wanted: dict[str, dict[str, tuple[str, str]]] = {}
        """Client -> URI as it knows it -> name of the server and its own URI."""

    async def add(self, client: str, uri: str) -> None:
        """Safe to repeat. Raises: RpcError for a resource that no server can report on."""
        wanted = self._wanted.setdefault(client, {})
        if uri in wanted:
            if self._fleet.get(wanted[uri][0]) is not None:
                return
            await self.remove(client, uri)  # its server was taken away; another may have the resource now
        if len(wanted) >= MAX_PER_CLIENT:
            raise RpcError(INVALID_PARAMS, f"a client can subscribe to {MAX_PER_CLIENT} resources")
        owners = await self._aggregate.resource(uri) or [(s, uri) for s in self._aggregate.servers_with_resources()]
        able = [(server, own) for server, own in owners if _can_subscribe(server)]
        if not able:
            raise RpcError(INVALID_PARAMS, f"no server reports updates of {uri}", {"uri": uri})
        if uri in wanted:
            return  # asked for twice at the same time
        server, own = able[0]
        wanted[uri] = (server.name, own)
        counts = self._fleet.subscriptions(server.name)
        counts[own] = counts.get(own, 0) + 1
        if counts[own] == 1 and (failure := (await _apply(server)).get(own)):
            await self.remove(client, uri)
            raise failure

    async def remove(self, client: str, uri: str) -> None:
        """Safe to repeat; silent if the server is gone."""
        found = self._wanted.get(client, {}).pop(uri, None)
        if found is None:
            return
        name, own = found
        counts = self._fleet.subscriptions(name)
        count = counts.get(own, 0) - 1
        if count > 0:
            counts[own] = count
            return
        counts.pop(own, None)
        if server := self._fleet.get(name):
            await _apply(server)  # nobody wants it any more: whether the server heard it matters little

    async def forget(self, client: str) -> None:
        """The client is gone."""
        for uri in list(self._wanted.get(client, {})):
            await self.remove(client, uri)
        self._wanted.pop(client, None)


async def _apply(server: Server) -> Mapping[str, RpcError]:
    """Gives what the server refuses, or does not answer for in time, by its own URI."""
    server.wake()
    return await server.subscribe(SUBSCRIBE_TIMEOUT_S)


def _can_subscribe(server: Server) -> bool:
    declared = (server.capabilities or {}).get("resources")
    return isinstance(declared, dict) and bool(declared.get("subscribe"))
