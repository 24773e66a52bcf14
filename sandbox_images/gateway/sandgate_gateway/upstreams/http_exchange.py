"""One HTTP exchange with a remote MCP server: a POST or GET, and the JSON-RPC messages that come back."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.resolver import ThreadedResolver

from sandgate_gateway import jsonrpc
from sandgate_gateway.allowance import MESSAGE_COST, Allowance
from sandgate_gateway.framing import MAX_MESSAGE
from sandgate_gateway.jsonrpc import RpcError
from sandgate_gateway.protocol import INTERNAL_ERROR
from sandgate_gateway.sse import Event, EventReader, EventTooLongError
from sandgate_gateway.upstreams.addresses import (
    PrivateAddressError,
    PublicResolver,
    check_public,
    make_socket,
    refusal,
)
from sandgate_gateway.upstreams.connection import ConnectionEndedError, CouldNotConnectError

CONNECT_TIMEOUT_S = 10.0

DELIVERY_TIMEOUT_S = 30.0
"""How long a server may take to accept what is no request."""

MAX_REFUSED_PAUSE_S = 60.0

MAX_BODY = MAX_MESSAGE
_ACCEPT = "application/json, text/event-stream"


class HttpStatusError(Exception):
    """The server answered with an HTTP error and no JSON-RPC error in its body."""

    def __init__(self, status: int) -> None:
        super().__init__(f"answered with HTTP status {status}")
        self.status = status

    @property
    def may_pass(self) -> bool:
        """Whether the same request may be answered otherwise later: what stands before a server fails so, too, while
        the server itself is restarted. 200 is that of an answer of the wrong type, such as a page that says so."""
        return self.status >= 500 or self.status in (200, 429)


@dataclass
class Incoming:
    """One message from the server; `raw` are the bytes of its result where they can be passed on as they are."""

    message: dict[str, Any]
    raw: bytes | None


@dataclass
class StreamPosition:
    """Where an event stream has got to, for those that can be resumed."""

    last_event_id: str | None = None
    retry_ms: int | None = None


class HttpExchanges:
    """The HTTP client of one server: kept-alive connections, the configured headers, errors in words."""

    def __init__(self, url: str, headers: Mapping[str, str], *, allow_private: bool) -> None:
        """`allow_private` allows plain http and addresses that are not public. Raises: CouldNotConnectError."""
        if not allow_private:
            check_public(url)
        self.url = url
        self._client = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=30,
                resolver=ThreadedResolver() if allow_private else PublicResolver(),
                socket_factory=make_socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            read_bufsize=256 * 1024,
        )

    @asynccontextmanager
    async def post(
        self, body: bytes, headers: Mapping[str, str], url: str | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to one message, not read yet; `url` is for servers that take messages elsewhere. Raises:
        CouldNotConnectError, ConnectionEndedError, HttpStatusError, RpcError for an HTTP error with a JSON-RPC error in
        it."""
        all_headers = {"Content-Type": "application/json", "Accept": _ACCEPT, **headers}
        with _errors_in_words():
            async with self._client.post(
                url or self.url, data=body, headers=all_headers, allow_redirects=False
            ) as response:
                if response.status >= 300:
                    raise await _error_of(response)
                yield response

    async def deliver(self, body: bytes, headers: Mapping[str, str], url: str | None = None) -> None:
        """Send what is no request: nothing comes back but that it was taken. Raises: like `post`."""
        try:
            async with asyncio.timeout(DELIVERY_TIMEOUT_S), self.post(body, headers, url):
                return
        except TimeoutError:
            raise ConnectionEndedError(f"did not take a message within {DELIVERY_TIMEOUT_S:g} s") from None

    @asynccontextmanager
    async def get(self, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """An event stream that belongs to no request. Raises: like `post`."""
        with _errors_in_words():
            async with self._client.get(
                self.url, headers={"Accept": "text/event-stream", **headers}, allow_redirects=False
            ) as response:
                if response.status != 200 or not _is_event_stream(response):
                    raise HttpStatusError(response.status)
                yield response

    async def delete(self, headers: Mapping[str, str]) -> None:
        """End a session, best effort."""
        try:
            async with (
                asyncio.timeout(CONNECT_TIMEOUT_S),
                self._client.delete(self.url, headers=headers, allow_redirects=False),
            ):
                return
        except (aiohttp.ClientError, TimeoutError, OSError):
            return

    async def close(self) -> None:
        await self._client.close()


def pause_after(refusals: int, first_s: float) -> float:
    """Seconds before a server that is there is asked again for a stream which it does not give any more."""
    return min(first_s * 2.0 ** min(refusals, 10), MAX_REFUSED_PAUSE_S)


async def messages(response: aiohttp.ClientResponse, position: StreamPosition | None = None) -> AsyncIterator[Incoming]:
    """The JSON-RPC messages of an answer, be it JSON or an event stream, as they come. Raises: ConnectionEndedError."""
    if response.status == 202:
        return
    with _errors_in_words():
        if not _is_event_stream(response):
            yield _incoming(await _body(response))
            return
        unasked = Allowance()
        async for event in events(response):
            if position is not None:
                position.last_event_id = event.identifier or position.last_event_id
                position.retry_ms = event.retry_ms if event.retry_ms is not None else position.retry_ms
            if event.data:
                incoming = _incoming(event.data)
                yield incoming
                if "method" in incoming.message and (pause := unasked.spend(MESSAGE_COST + len(event.data))):
                    await asyncio.sleep(pause)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    """The events of a stream as they come. Raises: ConnectionEndedError."""
    reader = EventReader()
    with _errors_in_words():
        async for chunk in response.content.iter_any():
            for event in reader.feed(chunk):
                yield event


def _incoming(data: bytes) -> Incoming:
    try:
        return Incoming(*jsonrpc.parse_message(data.strip()))
    except ValueError as error:
        raise RpcError(INTERNAL_ERROR, "the server sent something that is not JSON-RPC") from error


def _is_event_stream(response: aiohttp.ClientResponse) -> bool:
    return response.content_type == "text/event-stream"


async def _body(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    held = 0
    async for chunk in response.content.iter_any():
        held += len(chunk)
        if held > MAX_BODY:
            raise ConnectionEndedError(f"sent a body of more than {MAX_BODY} bytes")
        parts.append(chunk)
    return b"".join(parts)


async def _error_of(response: aiohttp.ClientResponse) -> Exception:
    """An HTTP error as what it says, if it says it in JSON-RPC."""
    if response.content_type == "application/json":
        try:
            message, _ = jsonrpc.parse_message(await _body(response))
        except ValueError:
            return HttpStatusError(response.status)
        if "error" in message and message.get("jsonrpc") == "2.0" and response.status not in (401, 403, 404):
            return jsonrpc.as_error(message["error"])
        if response.status == 404 and isinstance(message.get("error"), dict):
            error = jsonrpc.as_error(message["error"])
            if error.code == -32601:  # 2026-07-28: an unknown method is a 404, and not a lost session
                return error
    return HttpStatusError(response.status)


class _errors_in_words:  # noqa: N801 (reads as the function it stands for)
    """Foreign exceptions as the gateway's own. The words never hold the URL: it may carry a secret."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        match error:
            case aiohttp.ClientConnectorCertificateError():
                raise CouldNotConnectError("could not be reached: its TLS certificate is not trusted") from error
            case aiohttp.ClientConnectorError(os_error=PrivateAddressError() as private):
                raise refusal(private.address) from error
            case aiohttp.ClientConnectorError():
                raise CouldNotConnectError(f"could not be reached: {_reason(error.os_error)}") from error
            case aiohttp.ConnectionTimeoutError():
                raise CouldNotConnectError("could not be reached: no answer") from error
            case aiohttp.InvalidURL():
                raise CouldNotConnectError("has a URL that is not valid", final=True) from error
            case UnicodeError():  # of the name, on its way to the resolver
                raise CouldNotConnectError("has a URL with a host name that is not valid", final=True) from error
            case aiohttp.ClientError() | EventTooLongError():
                raise ConnectionEndedError("broke the connection") from error


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):  # has numbers of its own
        return error.strerror or "its name is not known"
    return os.strerror(error.errno) if error.errno else "its name or address is not known"
