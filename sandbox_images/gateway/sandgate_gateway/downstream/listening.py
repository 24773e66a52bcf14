"""`subscriptions/listen`: the stream on which a modern client hears of changes it asked for, until it hangs up."""

import itertools
from typing import Any

from sandgate_gateway import jsonrpc
from sandgate_gateway.asgi import Receive, Send
from sandgate_gateway.downstream.fanout import Fanout
from sandgate_gateway.downstream.reply import EventStream
from sandgate_gateway.downstream.subscriptions import Subscriptions
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.protocol import (
    GATEWAY_INFO,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    META_SERVER_INFO,
    META_SUBSCRIPTION_ID,
)

MAX_STREAMS = 1000

_FLAGS = {
    "toolsListChanged": "notifications/tools/list_changed",
    "promptsListChanged": "notifications/prompts/list_changed",
    "resourcesListChanged": "notifications/resources/list_changed",
}


class _Stream:
    """One listening client."""

    def __init__(self, identifier: Any, methods: frozenset[str], uris: frozenset[str]) -> None:
        self.events = EventStream()
        self._meta = {META_SUBSCRIPTION_ID: identifier}
        self._identifier = identifier
        self._methods = methods
        self._uris = uris

    def acknowledge(self, honoured: dict[str, Any]) -> None:
        params = {"notifications": honoured, "_meta": self._meta}
        self.events.push(jsonrpc.notification("notifications/subscriptions/acknowledged", params))

    def tell(self, method: str, params: dict[str, Any]) -> None:
        if method in self._methods or (method == "notifications/resources/updated" and params.get("uri") in self._uris):
            self.events.push(jsonrpc.notification(method, {**params, "_meta": self._meta}))

    def end(self) -> None:
        """The graceful end: a result with the id of the request."""
        result = Result({"resultType": "complete", "_meta": {**self._meta, META_SERVER_INFO: GATEWAY_INFO}})
        self.events.push(jsonrpc.response(self._identifier, result))
        self.events.close()


class Listening:
    def __init__(self, fanout: Fanout, subscriptions: Subscriptions) -> None:
        self._fanout = fanout
        self._subscriptions = subscriptions
        self._streams: set[_Stream] = set()
        self._numbers = itertools.count(1)

    async def serve(self, identifier: Any, params: dict[str, Any], receive: Receive, send: Send) -> None:
        """Returns when the client is gone or the gateway stops. Raises: RpcError before the stream has begun."""
        wanted = params.get("notifications")
        if not isinstance(wanted, dict):
            raise RpcError(INVALID_PARAMS, "subscriptions/listen needs the parameter notifications, an object")
        if len(self._streams) >= MAX_STREAMS:
            raise RpcError(INTERNAL_ERROR, f"more than {MAX_STREAMS} clients listen already")
        client = f"listen-{next(self._numbers)}"
        try:
            honoured = await self._honour(client, wanted)
            methods = frozenset(method for flag, method in _FLAGS.items() if honoured.get(flag))
            stream = _Stream(identifier, methods, frozenset(honoured.get("resourceSubscriptions", ())))
            stream.acknowledge(honoured)
            remove = self._fanout.add(stream)
            self._streams.add(stream)
            try:
                await stream.events.write_to(receive, send, headers=[])
            finally:
                remove()
                self._streams.discard(stream)
        finally:
            await self._subscriptions.forget(client)

    def close(self) -> None:
        for stream in self._streams:
            stream.end()

    async def _honour(self, client: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """The part of the filter that will be delivered; resources no server reports on are left out."""
        honoured: dict[str, Any] = {flag: True for flag in _FLAGS if wanted.get(flag) is True}
        uris = wanted.get("resourceSubscriptions")
        subscribed = []
        for uri in uris if isinstance(uris, list) else ():
            try:
                await self._subscriptions.add(client, str(uri))
            except RpcError:
                continue
            subscribed.append(uri)
        if subscribed:
            honoured["resourceSubscriptions"] = subscribed
        return honoured
