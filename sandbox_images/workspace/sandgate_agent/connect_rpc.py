"""The Connect protocol with its JSON codec, the only one E2B's SDKs use (https://connectrpc.com/docs/protocol).

A unary call answers with a status and JSON. A stream always answers 200 and ends with an envelope that says whether it
succeeded: a stream without it counts as broken, and the JavaScript SDK drops the body of any other status.
"""

import asyncio
import logging
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson

from sandgate_agent.asgi import Request
from sandgate_agent.errors import (
    AgentError,
    BodyTooLarge,
    DeadlineExceeded,
    InvalidArgument,
    MethodNotAllowed,
    ResourceExhausted,
    UnsupportedMediaType,
)
from sandgate_agent.users import User

_MESSAGE_LIMIT = 64 << 20
"""Bytes of one message: a whole file pasted into a command's stdin still fits."""

_UNARY_TYPE = "application/json"
_STREAM_TYPE = "application/connect+json"

_COMPRESSED, _END_OF_STREAM = 0x01, 0x02
_PREFIX = struct.Struct(">BI")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """What every call carries beside its message."""

    user: User
    default_directory: str
    """Where a path leads that is not given: absolute, or relative to the user's home."""
    timeout_s: float | None
    """From Connect-Timeout-Ms; None without a limit."""


class ServerStream:
    """The answering side of a stream."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._last_sent = 0.0

    async def send(self, message: Mapping[str, Any]) -> None:
        """Waits while the caller reads more slowly than the method sends."""
        self._last_sent = asyncio.get_running_loop().time()
        await self._request.send_chunk(encode_envelope(message))

    async def keep_alive(self, message: Mapping[str, Any], interval_s: float) -> None:
        """Send the message whenever nothing was sent for that long; never returns."""
        clock = asyncio.get_running_loop().time
        self._last_sent = clock()
        while True:
            silence_s = clock() - self._last_sent
            if silence_s >= interval_s:
                await self.send(message)
                silence_s = 0.0
            await asyncio.sleep(interval_s - silence_s)


UnaryMethod = Callable[[Call, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
ServerStreamMethod = Callable[[Call, Mapping[str, Any], ServerStream], Awaitable[None]]
ClientStreamMethod = Callable[[Call, AsyncIterator[Mapping[str, Any]]], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Unary:
    method: UnaryMethod


@dataclass(frozen=True, slots=True)
class ServerStreaming:
    method: ServerStreamMethod
    keepalive: Mapping[str, Any]
    """The message that says nothing, for connections that are cut when idle."""


@dataclass(frozen=True, slots=True)
class ClientStreaming:
    method: ClientStreamMethod


Method = Unary | ServerStreaming | ClientStreaming


def encode_envelope(message: Mapping[str, Any], flags: int = 0) -> bytes:
    payload = orjson.dumps(message)
    return _PREFIX.pack(flags, len(payload)) + payload


def error_message(error: AgentError) -> dict[str, str]:
    return {"code": error.code, "message": error.message}


def error_status(error: AgentError) -> int:
    """That of the Connect protocol, which knows none for a full disk or a large body."""
    return ResourceExhausted.status if error.code == ResourceExhausted.code else error.status


def parse_timeout(headers: Mapping[str, str]) -> float | None:
    """Seconds; 0 means no limit, as in E2B's agent. Raises: InvalidArgument."""
    value = headers.get("connect-timeout-ms")
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,10}", value):
        raise InvalidArgument("Connect-Timeout-Ms must be a whole number of milliseconds of at most 10 digits")
    return int(value) / 1000 or None


def decode_message(payload: bytes) -> Mapping[str, Any]:
    """Raises: InvalidArgument."""
    try:
        message = orjson.loads(payload or b"{}")
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"the message is not valid JSON: {error}") from error
    if not isinstance(message, dict):
        raise InvalidArgument("the message must be a JSON object")
    return message


async def decode_envelopes(chunks: AsyncIterator[bytes]) -> AsyncIterator[Mapping[str, Any]]:
    """The data messages of a stream, up to its end. Raises: InvalidArgument, BodyTooLarge."""
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
        while len(buffer) >= _PREFIX.size:
            flags, length = _PREFIX.unpack_from(buffer)
            if length > _MESSAGE_LIMIT:
                raise BodyTooLarge(f"a message is larger than {_MESSAGE_LIMIT} bytes")
            if flags & _COMPRESSED:
                raise InvalidArgument("compressed messages are not supported")
            end = _PREFIX.size + length
            if len(buffer) < end:
                break
            payload = bytes(buffer[_PREFIX.size : end])
            del buffer[:end]
            if flags & _END_OF_STREAM:
                return
            yield decode_message(payload)
    if buffer:
        raise InvalidArgument("the stream ends in the middle of a message")


async def serve_call(request: Request, method: Method, call: Call) -> None:
    """Answer one call. Raises: AgentError only before a stream's answer has begun."""
    if request.method != "POST":
        raise MethodNotAllowed("calls are made with POST", {"Allow": "POST"})
    expected = _UNARY_TYPE if isinstance(method, Unary) else _STREAM_TYPE
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != expected:
        raise UnsupportedMediaType(f"this method takes {expected}", {"Accept-Post": expected})
    match method:
        case Unary():
            await _serve_unary(request, method, call)
        case ServerStreaming():
            await _serve_server_stream(request, method, call)
        case ClientStreaming():
            await _serve_client_stream(request, method, call)


async def _serve_unary(request: Request, method: Unary, call: Call) -> None:
    message = decode_message(await request.body(limit=_MESSAGE_LIMIT))
    try:
        async with asyncio.timeout(call.timeout_s):
            answer = await method.method(call, message)
    except TimeoutError as error:
        raise DeadlineExceeded("the call took longer than its Connect-Timeout-Ms") from error
    await request.answer_json(200, answer)


async def _serve_server_stream(request: Request, method: ServerStreaming, call: Call) -> None:
    messages = decode_envelopes(request.chunks())
    try:
        interval_s = _keepalive_interval(request.headers)
        async with aclosing(messages):  # type: ignore[type-var]
            message = await anext(messages, None)
            if message is None:
                raise InvalidArgument("the request carries no message")
            await _drain(messages)
    except AgentError as error:
        await _answer_stream(request, error)
        return
    await request.start_answer(200, {"Content-Type": _STREAM_TYPE})
    stream = ServerStream(request)

    async def work() -> None:
        try:
            await method.method(call, message, stream)
            end: Mapping[str, Any] = {}
        except AgentError as error:
            end = {"error": error_message(error)}
        await request.send_chunk(encode_envelope(end, _END_OF_STREAM))
        await request.end_answer()

    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(work(), name="stream")
        helpers = [tasks.create_task(_cancel_when_gone(request, working), name="stream-hang-up")]
        if interval_s is not None:
            helpers.append(tasks.create_task(stream.keep_alive(method.keepalive, interval_s), name="stream-keepalive"))
        await asyncio.wait([working])
        for helper in helpers:
            helper.cancel()


async def _serve_client_stream(request: Request, method: ClientStreaming, call: Call) -> None:
    try:
        async with asyncio.timeout(call.timeout_s):
            answer = await method.method(call, decode_envelopes(request.chunks()))
    except TimeoutError:
        await _answer_stream(request, DeadlineExceeded("the call took longer than its Connect-Timeout-Ms"))
    except AgentError as error:
        await _answer_stream(request, error)
    else:
        await request.start_answer(200, {"Content-Type": _STREAM_TYPE})
        await request.send_chunk(encode_envelope(answer) + encode_envelope({}, _END_OF_STREAM))
        await request.end_answer()


async def _answer_stream(request: Request, error: AgentError) -> None:
    """Answer a stream that failed before its first message."""
    end = encode_envelope({"error": error_message(error)}, _END_OF_STREAM)
    await request.answer(200, end, {"Content-Type": _STREAM_TYPE})


async def _drain(messages: AsyncIterator[Mapping[str, Any]]) -> None:
    async for _ in messages:
        raise InvalidArgument("this method takes exactly one message")


async def _cancel_when_gone(request: Request, working: asyncio.Task[None]) -> None:
    await request.disconnected()
    working.cancel()


def _keepalive_interval(headers: Mapping[str, str]) -> float | None:
    value = headers.get("keepalive-ping-interval")
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,6}", value):
        raise InvalidArgument("Keepalive-Ping-Interval must be a whole number of seconds")
    return int(value) or None
