"""One HTTP request through the edge: client to pod and back, both directions at once, nothing buffered beyond need."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import structlog
from starlette.types import Receive, Scope, Send

from app.edge.answers import Refusal, broken_off, port_not_open, send_refusal
from app.edge.connection import Connection, ConnectionBrokenError, ResponseHead
from app.edge.dialling import OWN_PORTS, PortClosedError, key_of
from app.edge.heads import BadHeadError, Body, make_request_head, make_response_headers
from app.edge.pool import Pool
from app.edge.routing import Route

_log = structlog.get_logger()

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
"""Starts a task that its caller cancels, and whose end its owner waits for."""

_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"})


class Exchange:
    """Carries one request. A pod's connection is used again as follows.

    A kept connection can be closed by the pod at the very moment it is used. The request is then sent once more, on a
    new connection, if it is idempotent, its whole body is at hand and nothing came back. Other requests, `POST` above
    all, must not be sent twice (RFC 9110, section 9.2.2). They use a kept connection only to the agent and the gateway,
    which keep idle connections for longer than the pool does, and a new one to every other port.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, route: Route, pool: Pool, spawn: Spawn) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._route = route
        self._pool = pool
        self._spawn = spawn
        self._key = key_of(route)
        self._connection: Connection | None = None
        self._request_sent = False
        self._client_gone = False
        self._started = False

    async def run(self) -> None:
        """Answers the request.

        Returns without having completed the answer if the pod broke off or the client went away: the server then
        closes the client's connection, so that a client never takes half an answer for a whole one.
        """
        sandbox_id, _, port = self._key
        try:
            await self._forward()
        except BadHeadError as error:
            await self.refuse(Refusal(400, str(error), sandbox_id))
        except PortClosedError:
            await self.refuse(port_not_open(sandbox_id, port))
        except ConnectionBrokenError as error:
            if self._started and not self._client_gone:
                _log.info("sandbox_stream_broke_off", sandbox_id=sandbox_id, port=port, reason=str(error))
            await self.refuse(broken_off(sandbox_id, port))
        finally:
            if self._connection is not None:
                self._connection.abort()

    async def refuse(self, refusal: Refusal) -> None:
        """Answers in the sandbox's place, unless an answer has begun or nobody is there to read it."""
        if not self._started and not self._client_gone:
            self._started = True
            await send_refusal(self._scope, self._send, refusal)

    async def _forward(self) -> None:
        method: str = self._scope["method"]
        head = make_request_head(self._scope, self._route)
        data, more = head.data, head.body is Body.CHUNKED
        if head.body is Body.LENGTH:
            # What is at hand travels in one packet with the head. A chunked body may be one half of a conversation
            # that the pod has to open, so there the head does not wait.
            first, more = await self._read_request()
            data += first
        repeatable = not more and method in _IDEMPOTENT
        kept = self._pool.take(self._key) if repeatable or self._key[2] in OWN_PORTS else None
        connection = self._connection = kept or await self._pool.connect(self._route)
        connection.start(data, is_head_request=method == "HEAD")
        uplink = self._spawn(self._pump_request(connection, chunked=head.body is Body.CHUNKED, more=more))
        try:
            try:
                response = await connection.head()
            except ConnectionBrokenError:
                if not (kept and repeatable) or connection.answered or self._client_gone:
                    raise
                connection = self._connection = await self._pool.connect(self._route)
                connection.start(data, is_head_request=method == "HEAD")
                response = await connection.head()
            await self._pump_response(connection, response)
        finally:
            uplink.cancel()

    async def _pump_request(self, connection: Connection, *, chunked: bool, more: bool) -> None:
        """Sends the rest of the request's body, then watches for the client to hang up."""
        with suppress(ConnectionBrokenError):  # the side that reads the response meets it too, and answers
            while more:
                data, more = await self._read_request()
                if not chunked:
                    connection.write(data)
                elif data:
                    connection.write_chunk(data)
                await connection.drain()
            if chunked:
                connection.write_chunk(b"")
            self._request_sent = True
            while True:
                await self._read_request()

    async def _read_request(self) -> tuple[bytes, bool]:
        """The next piece of the body and whether more follows. Raises: ConnectionBrokenError if the client hung up."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._client_gone = True
            if self._connection is not None:
                self._connection.abort()
            raise ConnectionBrokenError("the client hung up")
        return message.get("body", b""), message.get("more_body", False)

    async def _pump_response(self, connection: Connection, head: ResponseHead) -> None:
        self._started = True
        headers = make_response_headers(head)
        await self._send({"type": "http.response.start", "status": head.status, "headers": headers})
        more = True
        while more:
            data, more = await connection.read()
            if not more and self._request_sent:
                self._connection = None
                self._pool.give_back(self._key, connection)
            if data or not more:
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
