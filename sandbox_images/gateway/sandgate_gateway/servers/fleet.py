"""All servers of the sandbox: follows the configuration, starting and stopping only what it changes."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sandgate_gateway.cancelling import cancel_all
from sandgate_gateway.configuration import (
    BridgeTransport,
    Configuration,
    ContainersTransport,
    HttpTransport,
    ServerDefinition,
    SseTransport,
    StdioTransport,
    Transport,
    WorkspaceTransport,
)
from sandgate_gateway.control_plane_requests import ControlPlaneRequests
from sandgate_gateway.servers.server import Server
from sandgate_gateway.upstreams.bridges import Bridges
from sandgate_gateway.upstreams.child_environment import child_environment, child_identity, prepare_home
from sandgate_gateway.upstreams.connection import Connection, CouldNotConnectError, Listener
from sandgate_gateway.upstreams.containers import ContainersConnection
from sandgate_gateway.upstreams.door import DoorConnection
from sandgate_gateway.upstreams.stdio import ChildConnection, StderrLog

logger = logging.getLogger(__name__)

STARTS_AT_ONCE = max(1, (os.cpu_count() or 1) - 1)
"""Of servers that nobody waits for, because what they list is known from memory: programs that start together take
every processor for a second and more, and then the gateway, and a server that was called, have none."""

LONGEST_TURN_S = 5.0
"""Then the next one in line starts too: whoever takes so long mostly waits for something itself."""

OnNotification = Callable[[Server, str, dict[str, Any]], None]


class Fleet:
    """The servers in the order of the configuration. Its owner calls `close` at the end."""

    def __init__(
        self,
        data_dir: Path,
        *,
        own_users: bool,
        bridges: Bridges,
        requests: ControlPlaneRequests,
        changed: Callable[[], None],
        on_notification: OnNotification,
    ) -> None:
        self._bridges = bridges
        self._requests = requests
        self._data_dir = data_dir
        self._own_users = own_users
        self._on_change = changed
        self._on_notification = on_notification
        self._configuration = Configuration()
        self._servers: dict[str, Server] = {}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._numbers: dict[str, int] = {}
        self._subscriptions: dict[str, dict[str, int]] = {}
        """Server -> what clients have subscribed to there, whether or not it is there now."""
        self._turns: list[asyncio.Task[None]] = []
        self._applying = asyncio.Lock()
        self.version = 0
        """Counts changes of what the servers offer."""

    @property
    def servers(self) -> list[Server]:
        return list(self._servers.values())

    def get(self, name: str) -> Server | None:
        return self._servers.get(name)

    def subscriptions(self, name: str) -> dict[str, int]:
        """What clients have subscribed to at the server of this name: its own URI -> how many of them."""
        return self._subscriptions.setdefault(name, {})

    async def apply(self, configuration: Configuration) -> None:
        """Stop what is gone or different, start what is new. Returns once it has been stopped and is being started."""
        async with self._applying:
            before, self._configuration = self._configuration, configuration
            door_changed = before.stdio_door != configuration.stdio_door
            keep = {
                definition.name
                for definition in configuration.servers
                if (server := self._servers.get(definition.name))
                and definition.runs_like(server.definition)
                and not (door_changed and isinstance(definition.transport, WorkspaceTransport))
                and not (server.state == "failed" and before != configuration)
            }
            replaced = [name for name in self._servers if name not in keep]
            await self._stop(replaced)
            transports = [definition.transport for definition in configuration.servers]
            self._bridges.expect([one.token for one in transports if isinstance(one, BridgeTransport)])
            servers = {}
            for definition in configuration.servers:
                name = definition.name
                if name in keep:
                    servers[name] = self._servers[name]
                    servers[name].redefine(definition)
                else:
                    servers[name] = self._make(definition)
                    if name in replaced and self.subscriptions(name):
                        servers[name].wake()  # a lazy one, too: its clients hear of updates as before
            self._servers = servers
            for name, server in servers.items():
                if name not in self._lives:
                    self._lives[name] = asyncio.create_task(server.run(), name=f"server {name}")
            self._give_turns()
            self._changed()

    async def settled(self, *, unless_listed: bool = False) -> None:
        """Returns once no server is `starting`, those aside that are listed from memory if so wished."""
        while awaited := [
            server for server in self.servers if not (server.is_settled or (unless_listed and server.is_listed))
        ]:
            await awaited[0].settled()  # or stopped: then there are others now

    async def close(self) -> None:
        async with self._applying:
            for turn in self._turns:
                turn.cancel()
            await self._stop(list(self._servers))

    def status(self) -> dict[str, Any]:
        return {"servers": [server.status() for server in self._servers.values()]}

    async def _stop(self, names: list[str]) -> None:
        """Cancel the lives of these servers; each closes its own connection, all at the same time."""
        await cancel_all([self._lives.pop(name) for name in names if name in self._lives])
        for name in names:
            if server := self._servers.pop(name, None):
                server.stopped()

    def _give_turns(self) -> None:
        for turn in self._turns:
            turn.cancel()
        waiting = [server for server in self._servers.values() if server.is_in_line]
        line = iter(waiting)
        self._turns = [
            asyncio.create_task(_start_in_turn(line), name="start in turn") for _ in waiting[:STARTS_AT_ONCE]
        ]

    def _changed(self) -> None:
        self.version += 1
        self._on_change()

    def _make(self, definition: ServerDefinition) -> Server:
        number = self._numbers.setdefault(definition.name, len(self._numbers))
        folder = quote(definition.name, safe="")  # "a/b" and "a-b" must not meet
        home = self._data_dir / folder
        stderr = StderrLog(self._data_dir / ".logs" / f"{folder}.log")

        def connect(transport: Transport, listener: Listener) -> Connection:
            match transport:
                case StdioTransport(command=command, env=env):
                    identity = child_identity(number) if self._own_users else None
                    try:
                        prepare_home(home, identity)
                    except OSError as error:
                        raise CouldNotConnectError(f"has no home directory: {error.strerror}", final=True) from error
                    return ChildConnection(
                        definition.name,
                        listener,
                        command=command,
                        env=child_environment(home, env),
                        cwd=home,
                        identity=identity,
                        stderr=stderr,
                    )
                case WorkspaceTransport():
                    return DoorConnection.to_workspace(
                        definition.name, listener, transport, self._configuration.stdio_door, stderr
                    )
                case BridgeTransport():
                    return DoorConnection.over_bridge(definition.name, listener, transport, self._bridges, stderr)
                case ContainersTransport(tools=tools):
                    return ContainersConnection(definition.name, tools, self._requests)
                case HttpTransport() | SseTransport():
                    # aiohttp costs memory that sandboxes without remote servers need not pay.
                    from sandgate_gateway.upstreams.remote import connect_remote  # noqa: PLC0415

                    return connect_remote(definition.name, listener, transport, definition.start_timeout_s)

        return Server(
            definition,
            connect=connect,
            subscriptions=self.subscriptions(definition.name),
            stderr=stderr.snapshot,
            changed=self._changed,
            on_notification=self._on_notification,
        )


async def _start_in_turn(line: Iterator[Server]) -> None:
    """Start one server after another. Several of these may share a line."""
    for server in line:
        server.wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_TURN_S):
                await server.settled()
