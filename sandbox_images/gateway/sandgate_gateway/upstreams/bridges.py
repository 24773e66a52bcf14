"""The socket that the stdio bridges of image servers connect to; docs/ARCHITECTURE.md, 6.3.

A bridge keeps one connection on offer, and each that is taken up is one run of its server. The containers of all image
servers see the same socket, so a token tells whose offer it is. They can neither remove it nor put another in its
place, because its volume is read-only there.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)

TAKEN_UP = b"\x01"

GREETING_BYTES = 256

GREETING_TIMEOUT_S = 5.0

MOST_STRANGERS = 64
"""Connections that have not said yet whose they are. A bridge greets at once, so it is the longest silent one that goes
when another comes."""

_BACKLOG = 1024

_NO_FILES_PAUSE_S = 1.0
"""Until the next connection is accepted, after one could not be."""

ProtocolFactory = Callable[[], asyncio.Protocol]


@dataclass(eq=False)
class _Server:
    """One that is expected to call."""

    offer: socket.socket | None = None
    has_called: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class _Stranger:
    connection: socket.socket
    patience: asyncio.TimerHandle
    said: bytes = b""


class Bridges:
    """Listens from the first expected token on. Its owner calls `close` at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._servers: dict[str, _Server] = {}
        self._strangers: dict[int, _Stranger] = {}
        """By file descriptor, in the order in which they came."""

    def keep_others_out(self) -> None:
        """Let no other user make or remove anything beside the socket; a fresh volume is for everybody to write to."""
        with suppress(OSError):  # it is not there, or a user namespace makes it somebody else's
            self._path.parent.chmod(0o755)

    def expect(self, tokens: Collection[str]) -> None:
        """From now on these are the servers there are; offers of others are refused."""
        for token in self._servers.keys() - set(tokens):
            self._withdraw(self._servers.pop(token))
        for token in tokens:
            self._servers.setdefault(token, _Server())
        if self._servers:
            with suppress(OSError):  # `take` tries again, and tells
                self._listen()

    async def take(self, token: str, protocol: ProtocolFactory) -> tuple[asyncio.BaseTransport, asyncio.Protocol]:
        """The connection that an expected server has on offer, or offers next: its command runs from now on.

        The caller bounds the wait. Raises: OSError if nobody can call.
        """
        self._listen()
        server, loop = self._servers[token], asyncio.get_running_loop()
        while True:
            while server.offer is None:
                server.has_called.clear()
                await server.has_called.wait()
            offer, server.offer = server.offer, None
            loop.remove_reader(offer)
            try:
                offer.send(TAKEN_UP)
            except OSError:  # it was withdrawn a moment ago
                offer.close()
            else:
                return await loop.connect_accepted_socket(protocol, offer)

    def close(self) -> None:
        """Hang up on everybody who was not taken up. Safe to repeat."""
        self.expect(())
        for stranger in list(self._strangers.values()):
            self._refuse(stranger)
        if self._pause is not None:
            self._pause.cancel()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    # Who calls

    def _listen(self) -> None:
        if self._listener is not None:
            return
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.setblocking(False)
            self._path.unlink(missing_ok=True)  # a gateway that was killed has left it
            listener.bind(str(self._path))
            # Images have users of their own: who can connect is decided by who has the volume, who is heard by tokens.
            self._path.chmod(0o666)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._accept_again()

    def _accept_again(self) -> None:
        assert self._listener is not None
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        """One at a time, so that a flood of them takes turns with everything else the gateway does."""
        loop = asyncio.get_running_loop()
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            logger.warning("a stdio bridge could not be let in: %s", error)
            loop.remove_reader(listener)
            self._pause = loop.call_later(_NO_FILES_PAUSE_S, self._accept_again)
            return
        connection.setblocking(False)
        if len(self._strangers) >= MOST_STRANGERS:
            self._refuse(next(iter(self._strangers.values())))
        number = connection.fileno()
        patience = loop.call_later(GREETING_TIMEOUT_S, lambda: self._refuse(self._strangers[number]))
        self._strangers[number] = _Stranger(connection, patience)
        loop.add_reader(connection, self._hear, self._strangers[number])

    def _hear(self, stranger: _Stranger) -> None:
        try:
            data = stranger.connection.recv(GREETING_BYTES + 1 - len(stranger.said))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        stranger.said += data
        token, newline, more = stranger.said.partition(b"\n")
        server = self._servers.get(token.decode(errors="replace")) if newline and not more else None
        if server is not None and len(stranger.said) <= GREETING_BYTES:
            self._let_in(stranger, server)
        elif newline or not data or len(stranger.said) > GREETING_BYTES:
            self._refuse(stranger)

    def _let_in(self, stranger: _Stranger, server: _Server) -> None:
        self._forget(stranger)
        self._withdraw(server)
        server.offer = stranger.connection
        server.has_called.set()
        # Nothing is said before it is taken up, so this is its end, or no bridge.
        asyncio.get_running_loop().add_reader(stranger.connection, self._withdraw, server)

    def _withdraw(self, server: _Server) -> None:
        if server.offer is not None:
            asyncio.get_running_loop().remove_reader(server.offer)
            server.offer.close()
            server.offer = None

    def _refuse(self, stranger: _Stranger) -> None:
        self._forget(stranger)
        stranger.connection.close()

    def _forget(self, stranger: _Stranger) -> None:
        stranger.patience.cancel()
        asyncio.get_running_loop().remove_reader(stranger.connection)
        del self._strangers[stranger.connection.fileno()]
