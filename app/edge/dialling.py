"""New connections to ports of pods: straight to the pod's address, or through its agent to a loopback port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import orjson

from app.edge.routing import AGENT_DOOR_PORT, AGENT_PORT, GATEWAY_PORT, Route

CONNECT_TIMEOUT_S = 5.0
"""For both ways together."""
_ANSWER_LIMIT = 4096

OWN_PORTS = frozenset({AGENT_PORT, GATEWAY_PORT})
"""Those of the pod's agent and gateway, which listen on every address."""

P = TypeVar("P", bound=asyncio.Protocol)

Key = tuple[str, str, int]
"""Sandbox id, address and port. The id is part of it because addresses are used again by other pods."""


class PortClosedError(Exception):
    """Nothing accepts connections at the port, or not in time."""


def key_of(route: Route) -> Key:
    return route.sandbox_id, route.address, route.port


class Dialler:
    """Opens connections, and remembers which way led to a port, so that only the first has to try both.

    A service on 127.0.0.1 cannot be reached from outside its pod: there the agent connects and passes bytes both ways
    (docs/ARCHITECTURE.md, section 6.2).
    """

    def __init__(self) -> None:
        self._on_loopback: set[Key] = set()

    async def connect(self, make_protocol: Callable[[], P], route: Route) -> P:
        """Raises: PortClosedError."""
        key = key_of(route)
        token = route.target.dial_token
        has_agent = token is not None and route.port not in OWN_PORTS
        agent_first = has_agent and key in self._on_loopback
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if agent_first:
                    try:
                        return await _through_agent(make_protocol, route)
                    except ConnectionRefusedError:
                        self._on_loopback.discard(key)
                try:
                    return await _straight(make_protocol, route)
                except ConnectionRefusedError:
                    if not has_agent or agent_first:
                        raise
                protocol = await _through_agent(make_protocol, route)
        except OSError as error:  # TimeoutError is one
            raise PortClosedError from error
        self._on_loopback.add(key)
        return protocol

    def forget(self, sandbox_id: str) -> None:
        """Forgets what was learnt of a sandbox. Safe to repeat."""
        self._on_loopback = {key for key in self._on_loopback if key[0] != sandbox_id}


async def _straight(make_protocol: Callable[[], P], route: Route) -> P:
    """Raises: OSError."""
    _, protocol = await asyncio.get_running_loop().create_connection(make_protocol, route.address, route.port)
    return protocol


async def _through_agent(make_protocol: Callable[[], P], route: Route) -> P:
    """Raises: OSError, ConnectionRefusedError if the agent says no."""
    request = orjson.dumps({"token": route.target.dial_token, "dial": {"port": route.port}}) + b"\n"
    loop = asyncio.get_running_loop()
    transport, asking = await loop.create_connection(
        lambda: _Asking(request, make_protocol), route.address, AGENT_DOOR_PORT
    )
    try:
        return await asking.connected
    except BaseException:
        transport.abort()
        raise


class _Asking(asyncio.Protocol, Generic[P]):
    """Asks the agent for a port, and hands the connection over to its user once the agent has connected it."""

    def __init__(self, request: bytes, make_protocol: Callable[[], P]) -> None:
        self.connected: asyncio.Future[P] = asyncio.get_running_loop().create_future()
        self._request = request
        self._make_protocol = make_protocol
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        answer, newline, first_words = self._received.partition(b"\n")
        if not newline and len(answer) < _ANSWER_LIMIT or self.connected.done():
            return
        if not _is_connected(answer):
            self.connected.set_exception(ConnectionRefusedError())
            return
        # In this very call, so that nothing of what the service says can get lost between the two.
        protocol = self._make_protocol()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        self.connected.set_result(protocol)
        if first_words:
            protocol.data_received(first_words)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.connected.done():
            self.connected.set_exception(ConnectionResetError())


def _is_connected(answer: bytes) -> bool:
    """The answer comes from inside a sandbox, so it can be anything."""
    try:
        return bool(orjson.loads(answer) == {"connected": True})
    except orjson.JSONDecodeError:
        return False
