"""HTTP to pods. Whoever is root in a workspace may have put something else in the place of its agent.

So nothing an answer says is followed or kept, none is decoded, and none is larger than whoever asks is ready to take.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx

CALL_TIMEOUT_S = 5.0
KNOCK = "sandgate.knock"
"""Extension of a request that waits until somebody listens: whether to knock before it is sent."""
POLL_S = 0.005
MIB = 1024 * 1024

_CONNECT_S = 0.05
"""What is sent to a pod in the first moments of its network may be lost, and the kernel sends it again after 1 s."""
_POOLS = 64
"""That pods are spread over: for each request a pool looks at all its connections, and every gateway keeps one open."""
_MOST = "sandgate.most"
_USUAL_MOST = 64 * 1024
_UNHEEDED = ("location", "set-cookie")
"""Headers that the client would act on by itself."""


class UnacceptableAnswerError(httpx.RequestError):
    """What a pod answers is too large, or encoded though that was not asked for. The text ends a sentence."""


def at_most(count: int | None) -> dict[str, Any]:
    """Extensions of a request: how many bytes its answer may have where 64 KiB are too few. None: any number, if it is
    a success; for callers that keep none of them."""
    return {_MOST: count}


def make_http_client() -> httpx.AsyncClient:
    """For plain HTTP to pods only: no certificates are loaded, no proxy asked, no number of pods is too large."""
    return httpx.AsyncClient(
        transport=_Transport(),
        timeout=CALL_TIMEOUT_S,
        trust_env=False,
        follow_redirects=False,
        headers={"Accept-Encoding": "identity"},
    )


class _Transport(httpx.AsyncBaseTransport):
    """To any number of pods. Waits for somebody to listen where a request asks for that, at a tenth of what requests in
    vain would cost."""

    def __init__(self) -> None:
        # For plain HTTP, but each pool would build its own.
        context = httpx.create_ssl_context(verify=False)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=9)
        self._pools = [httpx.AsyncHTTPTransport(verify=context, limits=limits) for _ in range(_POOLS)]

    async def aclose(self) -> None:
        for pool in self._pools:
            await pool.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        match request.extensions.get(KNOCK):
            case True:
                await _until_accepted(request.url.host, request.url.port or 80)
            case False:
                request.extensions["timeout"] = {**request.extensions["timeout"], "connect": _CONNECT_S}
        answer = await self._pools[hash(request.url.host) % _POOLS].handle_async_request(request)
        try:
            _confine(answer, request)
        except UnacceptableAnswerError:
            await answer.aclose()
            raise
        return answer


def _confine(answer: httpx.Response, request: httpx.Request) -> None:
    """Raises: UnacceptableAnswerError, as reading the answer does from now on."""
    for name in _UNHEEDED:
        if name in answer.headers:
            del answer.headers[name]
    may_be_encoded = answer.is_success and request.headers.get("accept-encoding", "identity") != "identity"
    if "content-encoding" in answer.headers and not may_be_encoded:
        raise UnacceptableAnswerError("an encoding that was not asked for", request=request)
    most = request.extensions.get(_MOST, _USUAL_MOST)
    if most is None and not answer.is_success:
        most = _USUAL_MOST
    if most is not None:
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        answer.stream = _BoundedStream(answer.stream, most, request)


class _BoundedStream(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, most: int, request: httpx.Request) -> None:
        self._stream = stream
        self._most = most
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        count = 0
        async for piece in self._stream:
            count += len(piece)
            if count > self._most:
                raise UnacceptableAnswerError(f"more than {self._most} bytes", request=self._request)
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _until_accepted(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            async with asyncio.timeout(_CONNECT_S):
                connection, _ = await loop.create_connection(asyncio.Protocol, host, port)
        except OSError:  # a time-out is one
            await asyncio.sleep(POLL_S)
        else:
            connection.close()
            return
