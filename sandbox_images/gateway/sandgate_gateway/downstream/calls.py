"""From a client's request to the server that answers it, and back. The same for both downstream eras."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from sandgate_gateway import discovery
from sandgate_gateway.aggregate import Aggregate
from sandgate_gateway.callers import Caller
from sandgate_gateway.eras.translate import Request, answer_inputs, answer_urls, result_for
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.lists import METHODS, Kind
from sandgate_gateway.protocol import (
    INTERACTIVE_METHODS,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    RESOURCE_NOT_FOUND,
)
from sandgate_gateway.rewriting import mentions_resources, rewrite_result
from sandgate_gateway.servers.server import Server, ServerStoppedError

_LISTS: dict[str, Kind] = {method: kind for kind, method in METHODS.items()}

Handler = Callable[[dict[str, Any], Caller], Awaitable[Result]]


class Calls:
    """Answers the methods that concern servers; what concerns the session or the gateway itself is not for here."""

    def __init__(self, aggregate: Aggregate) -> None:
        self._aggregate = aggregate
        self._handlers: dict[str, Handler] = {
            "tools/call": self._call_tool,
            "prompts/get": self._get_prompt,
            "resources/read": self._read_resource,
            "completion/complete": self._complete,
        }

    async def handle(self, method: str, params: dict[str, Any], caller: Caller) -> Result:
        """Raises: RpcError, the server's or the gateway's own."""
        if kind := _LISTS.get(method):
            return await self._aggregate.list_page(kind, params.get("cursor"), caller.era)
        if handler := self._handlers.get(method):
            try:
                return await handler(params, caller)
            except ServerStoppedError:  # before anything of the call reached it: whoever has its place now can take it
                return await handler(params, caller)
        raise RpcError(METHOD_NOT_FOUND, f"Method not found: {method}")

    async def _call_tool(self, params: dict[str, Any], caller: Caller) -> Result:
        if self._aggregate.discovers:
            match params.get("name"):
                case (discovery.SEARCH | discovery.DESCRIBE) as name:
                    return await self._discover(name, params.get("arguments"), caller)
                case discovery.CALL:
                    params = discovery.inner_call(params)
        route = await self._aggregate.tool(params.get("name"))
        return await self._forward(route.server, "tools/call", _with(params, "name", route.own), caller)

    async def _discover(self, name: str, arguments: Any, caller: Caller) -> Result:
        await self._aggregate.refresh("tools")
        search = self._aggregate.discovery
        result = search.search(arguments) if name == discovery.SEARCH else search.describe(arguments)
        return result_for(caller.era, "legacy", "tools/call", result)

    async def _get_prompt(self, params: dict[str, Any], caller: Caller) -> Result:
        route = await self._aggregate.prompt(params.get("name"))
        return await self._forward(route.server, "prompts/get", _with(params, "name", route.own), caller)

    async def _read_resource(self, params: dict[str, Any], caller: Caller) -> Result:
        uri = params.get("uri")
        if not isinstance(uri, str):
            raise RpcError(INVALID_PARAMS, "resources/read needs the parameter uri, a string")
        not_found = INVALID_PARAMS if caller.era == "modern" else RESOURCE_NOT_FOUND
        if owners := await self._aggregate.resource(uri):
            server, own = owners[0]
            try:
                return await self._forward(server, "resources/read", _with(params, "uri", own), caller)
            except RpcError as error:
                if error.code == RESOURCE_NOT_FOUND:
                    raise RpcError(not_found, error.message, {"uri": uri}) from error
                raise
        for server in self._aggregate.servers_with_resources():
            with suppress(RpcError):
                return await self._forward(server, "resources/read", params, caller)
        raise RpcError(not_found, f"Resource not found: {uri}", {"uri": uri})

    async def _complete(self, params: dict[str, Any], caller: Caller) -> Result:
        match params.get("ref"):
            case {"type": "ref/prompt", "name": name}:
                route = await self._aggregate.prompt(name)
                server, ref = route.server, {**params["ref"], "name": route.own}
            case {"type": "ref/resource", "uri": str(uri)}:
                owners = await self._aggregate.template(uri) or await self._aggregate.resource(uri)
                if not owners:
                    raise RpcError(INVALID_PARAMS, f"Unknown resource template: {uri}")
                server, own = owners[0]
                ref = {**params["ref"], "uri": own}
            case _:
                raise RpcError(INVALID_PARAMS, "completion/complete needs a ref of type ref/prompt or ref/resource")
        return await self._forward(server, "completion/complete", {**params, "ref": ref}, caller)

    async def _forward(self, server: Server, method: str, params: dict[str, Any], caller: Caller) -> Result:
        connection = await server.available()
        if connection.era == "modern" and caller.era == "legacy" and method in INTERACTIVE_METHODS:
            result = await answer_inputs(_rounds(server), method, params, caller)
        elif connection.era == "legacy" and caller.era == "modern":
            result = await answer_urls(_rounds(server), method, _without_inputs(params), caller)
        else:
            result = await server.request(method, params, caller)
        uris = self._aggregate.routes.uris
        if not uris.is_identity and mentions_resources(result.raw):
            changed = rewrite_result(method, result.value, lambda uri: uris.expose(server.name, uri))
            if changed is not result.value:
                result = Result(changed)
        return result_for(caller.era, connection.era, method, result)


def _rounds(server: Server) -> Request:
    """`server.request` for a call that may take several. Only the first may give way to the server in its place: that
    one knows nothing of the call, and to begin anew would do twice what was done."""
    has_begun = False

    async def request(method: str, params: dict[str, Any], caller: Caller) -> Result:
        nonlocal has_begun
        try:
            return await server.request(method, params, caller)
        except ServerStoppedError as error:
            if has_begun:
                raise RpcError(error.code, error.message, error.data) from error
            raise
        finally:
            has_begun = True

    return request


def _with(params: dict[str, Any], key: str, value: str) -> dict[str, Any]:
    return params if params.get(key) == value else {**params, key: value}


def _without_inputs(params: dict[str, Any]) -> dict[str, Any]:
    """A legacy server gives no states: one that comes back is not the server's, and not one the gateway still knows."""
    if "requestState" in params:
        raise RpcError(INVALID_PARAMS, "unknown or expired requestState")
    return {key: value for key, value in params.items() if key != "inputResponses"}
