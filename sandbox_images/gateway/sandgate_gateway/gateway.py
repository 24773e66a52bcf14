"""The gateway as a whole: builds its parts and hands them a configuration."""

import secrets
from pathlib import Path
from typing import Any

from sandgate_gateway.aggregate import Aggregate
from sandgate_gateway.configuration import Configuration
from sandgate_gateway.control_plane_requests import ControlPlaneRequests
from sandgate_gateway.downstream.calls import Calls
from sandgate_gateway.downstream.endpoint import McpEndpoint
from sandgate_gateway.downstream.fanout import Fanout
from sandgate_gateway.downstream.legacy import LegacyClients
from sandgate_gateway.downstream.modern import ModernClients
from sandgate_gateway.downstream.sessions import Session, Sessions
from sandgate_gateway.downstream.subscriptions import Subscriptions
from sandgate_gateway.servers.fleet import Fleet
from sandgate_gateway.servers.server import Server
from sandgate_gateway.upstreams.bridges import Bridges


class Gateway:
    """Lives within one event loop; its owner calls `close`."""

    def __init__(
        self, data_dir: Path, requests: ControlPlaneRequests, *, bridge_socket: Path, own_users: bool = True
    ) -> None:
        """`bridge_socket`: where image servers call. `own_users`: run each server under a uid of its own."""
        self._bridges = Bridges(bridge_socket)
        if own_users:
            self._bridges.keep_others_out()
        self.fleet = Fleet(
            data_dir,
            own_users=own_users,
            bridges=self._bridges,
            requests=requests,
            changed=self._changed,
            on_notification=self._heard,
        )
        self._aggregate = Aggregate(self.fleet, secrets.token_bytes(32))
        calls = Calls(self._aggregate)
        self._sessions = Sessions(self._session_ended)
        self._subscriptions = Subscriptions(self._aggregate, self.fleet)
        self._fanout = Fanout(self._aggregate, self._sessions)
        self._modern = ModernClients(self._aggregate, calls, self._fanout, self._subscriptions)
        legacy = LegacyClients(self.fleet, self._aggregate, calls, self._sessions, self._subscriptions)
        self.endpoint = McpEndpoint(legacy, self._modern)

    @property
    def tokens(self) -> tuple[str, ...]:
        return self.endpoint.configuration.tokens

    async def configure(self, configuration: Configuration) -> None:
        """Safe to repeat. Sessions live on unless their token is no longer accepted."""
        self.endpoint.configuration = configuration
        self._aggregate.configure(configuration.naming, discovers=configuration.discovery)
        self._sessions.keep_tokens(configuration.tokens)
        await self.fleet.apply(configuration)

    def hang_up(self) -> None:
        """End all sessions and streams, so that their connections can close. Safe to repeat."""
        self._fanout.close()
        self._modern.close()
        self._sessions.close()

    async def close(self) -> None:
        """Hangs up and stops the servers. Bounded by their grace periods."""
        self.hang_up()
        await self.fleet.close()
        self._bridges.close()

    def _changed(self) -> None:
        self._fanout.lists_may_have_changed()

    def _heard(self, server: Server, method: str, params: dict[str, Any]) -> None:
        self._fanout.heard(server, method, params)

    async def _session_ended(self, session: Session) -> None:
        await self._subscriptions.forget(session.id)
        for server in self.fleet.servers:
            if server.connection is not None:
                await server.connection.forget(session.id)
