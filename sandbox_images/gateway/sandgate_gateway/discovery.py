"""Three tools instead of all: for sandboxes with so many tools that their schemas would fill a model's context.

`search_tools` finds tools by words, `describe_tools` gives their full definitions, `call_tool` calls one of them.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import orjson

from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.lists import Item
from sandgate_gateway.protocol import INVALID_PARAMS
from sandgate_gateway.routes import Route, Routes
from sandgate_gateway.tool_search import ToolIndex

SEARCH, DESCRIBE, CALL = "search_tools", "describe_tools", "call_tool"
NAMES = frozenset({SEARCH, DESCRIBE, CALL})

DEFAULT_LIMIT = 10
MAX_LIMIT = 100
MAX_DESCRIBED = 20
MAX_SUMMARY = 300
"""Characters of a description in search results."""

_READ_ONLY = {"readOnlyHint": True, "openWorldHint": False}

TOOLS: list[Item] = [
    {
        "name": SEARCH,
        "title": "Search tools",
        "description": (
            "Find tools of this sandbox by what they do. Returns names and short descriptions, the best match first. "
            f"Look up a tool's parameters with {DESCRIBE} before you call it with {CALL}. An empty query lists the "
            "servers and how many tools each has."
        ),
        "inputSchema": {
            "type": "object",
            "properties": {
                "query": {
                    "type": "string",
                    "description": 'A few words: what should be done, and to what, as in "create github issue".',
                },
                "server": {"type": "string", "description": "Only tools of this server."},
                "limit": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": MAX_LIMIT,
                    "default": DEFAULT_LIMIT,
                    "description": "At most this many results.",
                },
            },
            "required": ["query"],
            "additionalProperties": False,
        },
        "annotations": _READ_ONLY,
    },
    {
        "name": DESCRIBE,
        "title": "Describe tools",
        "description": "Get the full definitions of tools that were found, with the JSON schemas of their arguments.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "names": {
                    "type": "array",
                    "items": {"type": "string"},
                    "minItems": 1,
                    "maxItems": MAX_DESCRIBED,
                    "description": f"Names as {SEARCH} returned them.",
                }
            },
            "required": ["names"],
            "additionalProperties": False,
        },
        "annotations": _READ_ONLY,
    },
    {
        "name": CALL,
        "title": "Call a tool",
        "description": "Call a tool of this sandbox. The result is the tool's own.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": f"The tool's name as {SEARCH} returned it."},
                "arguments": {
                    "type": "object",
                    "description": f"The tool's arguments, by the inputSchema that {DESCRIBE} returned.",
                },
            },
            "required": ["name"],
            "additionalProperties": False,
        },
    },
]


def instructions(servers: Iterable[str]) -> str:
    """What a model should know before it has seen any tool."""
    return (
        f"The tools of this sandbox are not listed one by one. Find them with {SEARCH}, read their parameters with "
        f"{DESCRIBE}, call them with {CALL}. Servers: {', '.join(servers)}."
    )


def inner_call(params: dict[str, Any]) -> dict[str, Any]:
    """The params of the call that a call of `call_tool` stands for. Raises: RpcError."""
    given = _arguments(params.get("arguments"))
    name, arguments = given.get("name"), given.get("arguments", {})
    if not isinstance(name, str):
        raise RpcError(INVALID_PARAMS, f"{CALL} needs the argument name, a string")
    if not isinstance(arguments, dict):
        raise RpcError(INVALID_PARAMS, f"the argument arguments of {CALL} must be an object")
    if name in NAMES:
        raise RpcError(INVALID_PARAMS, f"{CALL} calls tools that {SEARCH} finds; call {name} itself")
    return {**params, "name": name, "arguments": arguments}


class Discovery:
    """Search over the tools of a sandbox at one version of its lists."""

    def __init__(self, routes: Routes) -> None:
        self._routes: list[Route] = list(routes.tools.values())
        self._by_name = routes.tools
        self._index = ToolIndex((f"{route.item['name']} {route.server.name}", _text(route)) for route in self._routes)

    def search(self, arguments: Any) -> Result:
        """Raises: RpcError for arguments of the wrong kind."""
        given = _arguments(arguments)
        query, server, limit = given.get("query", ""), given.get("server"), given.get("limit", DEFAULT_LIMIT)
        if not isinstance(query, str):
            raise RpcError(INVALID_PARAMS, f"the argument query of {SEARCH} must be a string")
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_LIMIT:
            raise RpcError(INVALID_PARAMS, f"the argument limit of {SEARCH} must be an integer from 1 to {MAX_LIMIT}")
        servers = Counter(route.server.name for route in self._routes)
        if server is not None and server not in servers:
            return _failure(f"There is no server {server!r}. There are: {', '.join(servers)}.")
        found: Iterable[Route] = (self._routes[position] for position in self._index.search(query))
        if server is not None:
            found = self._routes if not query.strip() else found
            found = (route for route in found if route.server.name == server)
        matches = list(found)
        value: dict[str, Any] = {"tools": [_summary(route) for route in matches[:limit]], "matches": len(matches)}
        if not matches or not query.strip():
            value["servers"] = dict(servers)
        return _success(value)

    def describe(self, arguments: Any) -> Result:
        """Raises: RpcError for arguments of the wrong kind."""
        names = _arguments(arguments).get("names")
        if not isinstance(names, list) or not 1 <= len(names) <= MAX_DESCRIBED:
            raise RpcError(INVALID_PARAMS, f"the argument names of {DESCRIBE} must be a list of 1 to {MAX_DESCRIBED}")
        unknown = [str(name) for name in names if str(name) not in self._by_name]
        if unknown:
            import difflib  # noqa: PLC0415 (costs memory that most sandboxes need not pay)

            near = difflib.get_close_matches(unknown[0], self._by_name, n=3, cutoff=0.5)
            hint = f" Did you mean {', '.join(near)}?" if near else f" Find names with {SEARCH}."
            return _failure(f"There is no tool {unknown[0]!r}.{hint}")
        return _success({"tools": [self._by_name[str(name)].item for name in names]})


def _arguments(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RpcError(INVALID_PARAMS, "arguments must be an object")
    return value


def _text(route: Route) -> str:
    """What is searched besides the name: title, description and the names of the parameters."""
    schema = route.item.get("inputSchema")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    parts = [route.item.get("title"), route.item.get("description")]
    parts += list(properties) if isinstance(properties, dict) else []
    return " ".join(part for part in parts if isinstance(part, str))


def _summary(route: Route) -> dict[str, Any]:
    text = route.item.get("description")
    text = " ".join(text.split()) if isinstance(text, str) else ""
    return {
        "name": route.item["name"],
        "server": route.server.name,
        "description": text if len(text) <= MAX_SUMMARY else text[: MAX_SUMMARY - 1] + "…",
    }


def _success(value: dict[str, Any]) -> Result:
    return Result({"content": [{"type": "text", "text": orjson.dumps(value).decode()}], "structuredContent": value})


def _failure(message: str) -> Result:
    return Result({"content": [{"type": "text", "text": message}], "isError": True})
