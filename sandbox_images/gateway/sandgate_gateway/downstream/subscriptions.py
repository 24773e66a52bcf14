"""Which client wants updates of which resource, and the subscriptions at the servers that follow from it."""

from sandgate_gateway.aggregate import Aggregate
from sandgate_gateway.jsonrpc import RpcError
from sandgate_gateway.protocol import INVALID_PARAMS
from sandgate_gateway.servers.server import Server
from sandgate_gateway.upstreams.connection import ConnectionEndedError

MAX_PER_CLIENT = 1000


class Subscriptions:
    """A resource is subscribed at its server once, as long as at least one client wants it."""

    def __init__(self, aggregate: Aggregate) -> None:
        self._aggregate = aggregate
        self._wanted: dict[str, dict[str, tuple[Server, str]]] = {}
        """Client -> URI as it knows it -> server and its own URI."""

    async def add(self, client: str, uri: str) -> None:
        """Safe to repeat. Raises: RpcError for a resource that no server can report on."""
        wanted = self._wanted.setdefault(client, {})
        if uri in wanted:
            return
        if len(wanted) >= MAX_PER_CLIENT:
            raise RpcError(INVALID_PARAMS, f"a client can subscribe to {MAX_PER_CLIENT} resources")
        owners = await self._aggregate.resource(uri) or [(s, uri) for s in self._aggregate.servers_with_resources()]
        able = [(server, own) for server, own in owners if _can_subscribe(server)]
        if not able:
            raise RpcError(INVALID_PARAMS, f"no server reports updates of {uri}", {"uri": uri})
        wanted[uri] = able[0]
        server, own = able[0]
        server.subscriptions[own] = server.subscriptions.get(own, 0) + 1
        if server.subscriptions[own] == 1:
            try:
                await _apply(server)
            except RpcError:
                await self.remove(client, uri)
                raise

    async def remove(self, client: str, uri: str) -> None:
        """Safe to repeat; silent if the server is gone."""
        found = self._wanted.get(client, {}).pop(uri, None)
        if found is None:
            return
        server, own = found
        count = server.subscriptions.get(own, 0) - 1
        if count > 0:
            server.subscriptions[own] = count
            return
        server.subscriptions.pop(own, None)
        try:
            await _apply(server)
        except RpcError:
            return  # the client does not want it any more: whether the server heard it matters little

    async def forget(self, client: str) -> None:
        """The client is gone."""
        for uri in list(self._wanted.get(client, {})):
            await self.remove(client, uri)
        self._wanted.pop(client, None)


async def _apply(server: Server) -> None:
    server.wake()
    if server.connection is None:
        return  # done again when it is there
    try:
        await server.connection.subscribe(frozenset(server.subscriptions))
    except ConnectionEndedError:
        return


def _can_subscribe(server: Server) -> bool:
    declared = (server.capabilities or {}).get("resources")
    return isinstance(declared, dict) and bool(declared.get("subscribe"))
