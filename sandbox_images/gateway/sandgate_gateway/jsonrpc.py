"""JSON-RPC 2.0 messages as plain dictionaries and bytes. Knows nothing of MCP.

A message is parsed once, to learn what it is and that it is valid JSON. What need not change is passed on as the bytes
that came in: only the id around a result is written anew.
"""

import re
from typing import Any

import orjson

_RESULT_HEAD = re.compile(rb'\{"jsonrpc":"2\.0","id":(\d+),"result":')
"""How the Python, Go and Rust SDKs start a response."""
_RESULT_TAIL = re.compile(rb',"jsonrpc":"2\.0","id":(\d+)\}$')
"""How the TypeScript SDK ends one: `{"result":…,"jsonrpc":"2.0","id":1}`."""
_TAIL_LENGTH = 48

MAX_DEPTH = 240
"""Levels of what servers list or say unasked. orjson reads 1024 levels, but writes 254."""

_LEVELS_ADDED = 14
"""MAX_DEPTH and these are what orjson writes: an item of a list is some levels deeper in the gateway's own answer."""

MAX_VALUES = 1_000_000
"""Of one message: each takes 50 to 100 bytes of memory, be it two bytes of JSON."""

_LEAST, _MOST = -(2.0**63), 2.0**64
"""At and beyond these orjson reads an integer as a float."""

_LONG_INTEGER = re.compile(rb"[\[:,\s]-?[0-9]{19,}\s*[,\]}]")

_BETWEEN_VALUES = bytes(set(range(256)) - set(b'",[{'))
"""All but what begins or separates values, and what begins or ends a string."""


class RpcError(Exception):
    """A JSON-RPC error: what the peer answered, or what this side answers."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data

    def as_object(self) -> dict[str, Any]:
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.data is not None:
            error["data"] = self.data
        return error


class Result:
    """A successful answer: the value, and its bytes as long as nobody has changed the value."""

    __slots__ = ("_raw", "value")

    def __init__(self, value: Any, raw: bytes | None = None) -> None:
        self.value = value
        self._raw = raw

    @property
    def raw(self) -> bytes:
        """Raises: RpcError if it is nested too deep, and not as it came."""
        return encode(self.value, -32603) if self._raw is None else self._raw

    def replaced(self, value: Any) -> "Result":
        return Result(value)

    def with_members(self, members: dict[str, Any]) -> "Result":
        """This result with members it does not have yet put in front; the other bytes stay as they are."""
        if self._raw is None or not self._raw.startswith(b"{") or not members:
            return Result({**members, **self.value})
        head = orjson.dumps(members)
        rest = self._raw[1:].lstrip()
        return Result({**members, **self.value}, head[:-1] + (b"" if rest.startswith(b"}") else b",") + rest)


def parse_message(data: bytes) -> tuple[dict[str, Any], bytes | None]:
    """One JSON-RPC message and, for a response with a result, the bytes of the result where they can be cut out.

    Only the value between two known ends is parsed in the common case; that it parses alone proves that nothing else
    hides in the message. Raises: ValueError if it is not a JSON object, has more than MAX_VALUES values, or is no
    answer and more than MAX_DEPTH deep.
    """
    if has_too_many_values(data):
        raise ValueError(f"a JSON-RPC message must not have more than {MAX_VALUES} values")
    if head := _RESULT_HEAD.match(data):
        raw = data[head.end() : data.rindex(b"}")]
        try:
            return {"jsonrpc": "2.0", "id": int(head[1]), "result": orjson.loads(raw)}, raw
        except ValueError:
            pass  # not a plain response after all: the slow way decides
    elif data.startswith(b'{"result":') and (tail := _RESULT_TAIL.search(data, max(0, len(data) - _TAIL_LENGTH))):
        raw = data[len(b'{"result":') : tail.start()]
        try:
            return {"jsonrpc": "2.0", "id": int(tail[1]), "result": orjson.loads(raw)}, raw
        except ValueError:
            pass
    message = orjson.loads(data)
    if not isinstance(message, dict):
        raise ValueError("a JSON-RPC message must be an object")
    if "result" not in message and _may_be_deep(data) and not is_writable(message):
        raise ValueError("a JSON-RPC request or error must not be nested so deep")
    return message, None


def has_too_many_values(data: bytes) -> bool:
    """Whether JSON would take an unseemly amount of memory; told before it is parsed."""
    return len(data) > MAX_VALUES and values_in(data) > MAX_VALUES


def values_in(data: bytes) -> int:
    """How many values JSON has, roughly; commas in strings count as long as there are few."""
    count = data.count(b",") + data.count(b"[") + data.count(b"{")
    if count <= MAX_VALUES:
        return count
    marks = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _BETWEEN_VALUES)
    quotes = marks.count(b'"')
    if quotes > 4 * MAX_VALUES:  # two strings a value: its name and itself
        return quotes // 4
    return sum(map(len, marks.split(b'"')[::2]))


def has_long_integer(value: Any, data: bytes) -> bool:
    """Whether this part of the JSON `data` has an integer that does not fit into 64 bits, and would be passed on as a
    float that is not quite the same."""
    parts = [value]
    for part in parts:
        kind = type(part)
        if kind is dict:
            parts.extend(part.values())
        elif kind is list:
            parts.extend(part)
        elif kind is float and not _LEAST < part < _MOST:
            return _LONG_INTEGER.search(data) is not None
    return False


def _may_be_deep(data: bytes) -> bool:
    """Whether JSON has brackets enough to be nested more than MAX_DEPTH deep; cheap, errs on the side of yes."""
    return len(data) > 2 * MAX_DEPTH and data.count(b"{") + data.count(b"[") > MAX_DEPTH


def is_writable(value: Any) -> bool:
    """Whether a value that was read from JSON can be written within an answer of the gateway: nested at most MAX_DEPTH
    deep."""
    for _ in range(_LEVELS_ADDED):
        value = [value]
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


def encode(value: Any, code: int = -32602, option: int | None = None) -> bytes:
    """What was read from JSON as JSON again. Raises: RpcError with this code if it is nested too deep for that."""
    try:
        return orjson.dumps(value, option=option)
    except TypeError:
        raise RpcError(code, "the message is nested too deep to be passed on") from None


def request(identifier: int | str, method: str, params: Any = None) -> bytes:
    """Raises: RpcError if params are nested too deep."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": identifier, "method": method}
    if params is not None:
        message["params"] = params
    return encode(message)


def notification(method: str, params: Any = None) -> bytes:
    """Raises: RpcError if params are nested too deep."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if params is not None:
        message["params"] = params
    return encode(message)


def response(identifier: Any, result: Result) -> bytes:
    """Raises: RpcError like `Result.raw`."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (orjson.dumps(identifier), result.raw)


def error_response(identifier: Any, error: RpcError) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": identifier, "error": error.as_object()})


def own_failure(method: object) -> RpcError:
    """What a request is answered with that the gateway itself has failed to answer."""
    return RpcError(-32603, f"the gateway failed to answer {method}; its log tells why")


def as_error(value: Any) -> RpcError:
    """The error object of a peer, however incomplete it is."""
    if not isinstance(value, dict):
        return RpcError(-32603, "the server answered with an error that is not an object")
    code, message = value.get("code"), value.get("message")
    return RpcError(
        code if isinstance(code, int) else -32603,
        message if isinstance(message, str) else "the server gave no message",
        value.get("data"),
    )
