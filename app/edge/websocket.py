"""One WebSocket through the edge. Messages, subprotocol, close codes pass; extensions and pings are each hop's own."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.http11 import Response
from websockets.uri import WebSocketURI

from app.edge.answers import Refusal, broken_off, port_not_open, send_refusal
from app.edge.dialling import Dialler, PortClosedError
from app.edge.exchange import Spawn
from app.edge.heads import HOP_BY_HOP, NOT_FOR_SERVICES, Headers, masked_host, named_by_connection
from app.edge.routing import Route
from app.edge.stalls import StallWatch

_HANDSHAKE_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 5.0
_MESSAGE_LIMIT = 16 * 1024 * 1024
"""Most bytes in one message from a pod, which is not trusted; uvicorn's limit for the other direction is the same."""

_GOING_AWAY = 1001
_NO_STATUS = 1005
_BAD_GATEWAY = 1014
"""Close codes, RFC 6455 section 7.4.1 and the IANA registry."""

_KNOWN_STATUSES = frozenset(HTTPStatus)
"""uvicorn can answer a handshake with these only."""


class WebSocketExchange:
    """Carries one WebSocket. Dials the pod itself, because the library's `connect` would follow a pod's redirects."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        route: Route,
        dialler: Dialler,
        spawn: Spawn,
        stall_s: float,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._route = route
        self._dialler = dialler
        self._spawn = spawn
        self._stall_s = stall_s
        self._pod: ClientConnection | None = None
        self._accepted = False
        self._over = False

    async def run(self) -> None:
        """Carries the WebSocket until either side closes it."""
        await self._receive()  # websocket.connect
        try:
            refusal = await self._connect()
            if refusal is not None:
                await self.refuse(refusal)
            elif self._pod is not None:
                await self._carry(self._pod)
        finally:
            if self._pod is not None:
                self._pod.transport.abort()

    async def refuse(self, refusal: Refusal) -> None:
        """Refuses the handshake, or closes the WebSocket if it was accepted and is still open."""
        if self._over:
            return
        self._over = True
        if self._accepted:
            await self._send({"type": "websocket.close", "code": _GOING_AWAY, "reason": refusal.message})
        else:
            await send_refusal(self._scope, self._send, refusal)

    async def _connect(self) -> Refusal | None:
        """Opens the pod's side; or says, or passes on, why not."""
        sandbox_id, port = self._route.sandbox_id, self._route.port
        try:
            self._pod = await self._dialler.connect(self._make_client, self._route)
        except PortClosedError:
            return port_not_open(sandbox_id, port)
        try:
            async with asyncio.timeout(_HANDSHAKE_TIMEOUT_S):
                await self._pod.handshake(self._request_headers(), user_agent_header=None)
        except InvalidStatus as answer:
            if answer.response.status_code in _KNOWN_STATUSES:
                await self._pass_on(answer.response)
                self._pod.transport.abort()
                self._pod = None
                return None
            return broken_off(sandbox_id, port)
        except (InvalidHandshake, OSError, EOFError):
            return broken_off(sandbox_id, port)
        return None

    def _make_client(self) -> ClientConnection:
        host, port = self._host()
        uri = WebSocketURI(
            secure=False,
            host=host,
            port=port,
            path=self._route.path.decode("latin-1"),
            query=self._scope["query_string"].decode("latin-1"),
        )
        protocol = ClientProtocol(uri, subprotocols=self._scope["subprotocols"] or None, max_size=_MESSAGE_LIMIT)
        return _PodSide(protocol, self._stall_s)

    def _host(self) -> tuple[str, int]:
        """What the client sent as `Host`, unless it is masked; from it the library makes the pod's."""
        sent = (value for name, value in self._scope["headers"] if name == b"host")
        value = masked_host(self._route) or next(sent, b"")
        try:
            split = urlsplit("//" + value.decode("latin-1"))
            return split.hostname or "localhost", split.port or 80
        except ValueError:
            return "localhost", 80

    def _request_headers(self) -> list[tuple[str, str]]:
        dropped = HOP_BY_HOP | NOT_FOR_SERVICES | {b"host"} | named_by_connection(self._scope["headers"])
        return [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in self._scope["headers"]
            if name not in dropped and not name.startswith(b"sec-websocket-")
        ]

    async def _pass_on(self, answer: Response) -> None:
        """The pod answered the handshake with something else than 101: so does the edge."""
        self._over = True
        body = bytes(answer.body or b"")
        headers = [*_response_headers(answer), (b"content-length", b"%d" % len(body))]
        start = {"type": "websocket.http.response.start", "status": answer.status_code, "headers": headers}
        await self._send(start)
        await self._send({"type": "websocket.http.response.body", "body": body})

    async def _carry(self, pod: ClientConnection) -> None:
        self._accepted = True
        headers = _response_headers(pod.response) if pod.response is not None else []
        await self._send({"type": "websocket.accept", "subprotocol": pod.subprotocol, "headers": headers})
        uplink = self._spawn(self._pump_to_pod(pod))
        try:
            await self._pump_to_client(pod)
        finally:
            uplink.cancel()

    async def _pump_to_client(self, pod: ClientConnection) -> None:
        try:
            while True:
                message = await pod.recv()
                kind = "text" if isinstance(message, str) else "bytes"
                await self._send({"type": "websocket.send", kind: message})
        except ConnectionClosed as closed:
            if self._over:
                return
            self._over = True
            # The library has sent one first if the pod broke the protocol or its message was too big.
            frame = closed.rcvd or closed.sent
            code, reason = (frame.code, frame.reason) if frame else (_BAD_GATEWAY, "")
            code = 1000 if code == _NO_STATUS else code
            await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def _pump_to_pod(self, pod: ClientConnection) -> None:
        try:
            while True:
                message = await self._receive()
                if message["type"] == "websocket.disconnect":
                    break
                text = message.get("text")
                await pod.send(message["bytes"] if text is None else text)
        except ConnectionClosed:
            return  # `_pump_to_client` meets it too, and tells the client
        self._over = True
        if "reason" not in message:
            pod.transport.abort()  # the client's connection was lost: uvicorn knows no code or reason then
            return
        code = message["code"]
        await pod.close(1000 if code == _NO_STATUS else code, message["reason"] or "")


class _PodSide(ClientConnection):
    """Aborts itself when somebody waits to send and the pod takes nothing."""

    def __init__(self, protocol: ClientProtocol, stall_s: float) -> None:
        super().__init__(protocol, ping_interval=None, close_timeout=_CLOSE_TIMEOUT_S, max_queue=4)
        self._stall_s = stall_s
        self._watch: StallWatch | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch = StallWatch(self.transport, self._stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._unwatch()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.end()
            self._watch = None


def _response_headers(answer: Response) -> Headers:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers.raw_items()]
    dropped = HOP_BY_HOP | {b"content-length"} | named_by_connection(headers)
    return [(name, value) for name, value in headers if name not in dropped and not name.startswith(b"sec-websocket-")]
