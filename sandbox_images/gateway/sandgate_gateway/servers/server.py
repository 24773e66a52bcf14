"""One configured MCP server, kept running: start within its bound, restart with back-off, state for `/status`."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

from sandgate_gateway.callers import Caller
from sandgate_gateway.configuration import ServerDefinition
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.protocol import INTERNAL_ERROR, LIST_CHANGED
from sandgate_gateway.redaction import Redactor
from sandgate_gateway.servers.catalogue import CAPABILITY, KINDS, Catalogue, Kind
from sandgate_gateway.upstreams.connection import Connection, ConnectionEndedError, CouldNotConnectError, Listener

logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "failed"]

FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 30.0
STABLE_AFTER_S = 60.0
"""A run of this length makes the back-off start anew."""

LISTING_TIMEOUT_S = 5.0
"""Bound of reading one list; clients wait for the slowest server, but no longer than this."""

RELIST_AFTER_S = 0.02
"""Changes that are told several times are read once."""

LISTING_PAUSE_S = 10.0
"""Before a server that failed to list is asked again."""

CALL_TIMEOUT_S = 3600.0
"""A call a person still waits for; clients have bounds of their own."""

CALL_WAITS_FOR_RESTART_S = 10.0

Connect = Callable[[ServerDefinition, Listener], Connection]


class StartFailedError(Exception):
    """The server can't be started; the message follows its name."""


class Server:
    """`run` is the server's life; everything else looks at it or uses its connection."""

    def __init__(
        self,
        definition: ServerDefinition,
        *,
        connect: Connect,
        stderr: Callable[[], list[str]],
        changed: Callable[[], None],
        on_notification: Callable[["Server", str, dict[str, Any]], None],
    ) -> None:
        self.definition = definition
        self.name = definition.name
        self.state: State = "starting"
        self.message: str | None = None
        self.restarts = 0
        self.catalogue = Catalogue(changed)
        self.connection: Connection | None = None
        self.subscriptions: dict[str, int] = {}
        """The server's own URI -> how many clients want its updates."""
        self.redact = Redactor(definition.secrets)
        self._connect = connect
        self._stderr = stderr
        self._changed = changed
        self._on_notification = on_notification
        self._settled = asyncio.Event()
        self._skip_probe = False
        self._relisting: set[str] = set()
        """Capabilities whose lists are about to be read again."""
        self._refreshing: set[asyncio.Task[None]] = set()

    # Life

    async def run(self) -> None:
        """Runs until cancelled, or until the server has failed for good."""
        backoff = FIRST_BACKOFF_S
        while True:
            try:
                connection = await self._start()
            except StartFailedError as error:
                self.message = self.redact(str(error))
                logger.warning("server %s %s", self.name, self.message)
                if not self.restarts:
                    self._settle("failed")
                    return
            else:
                started = time.monotonic()
                try:
                    how = await connection.wait_ended()
                finally:
                    self.connection = None
                    self._settled.clear()
                    await connection.close()
                if time.monotonic() - started >= STABLE_AFTER_S:
                    backoff = FIRST_BACKOFF_S
                self.message = self.redact(how)
                logger.warning("server %s %s and is restarted", self.name, self.message)
                self.state = "starting"
            self.restarts += 1
            self._changed()
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF_S)

    async def _start(self) -> Connection:
        """One start within the bound of the definition. Raises: StartFailedError."""
        timeout = self.definition.start_timeout_s
        deadline = asyncio.get_running_loop().time() + timeout
        reason = ""
        pause = 0.05
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    try:
                        connection = await self._open()
                    except CouldNotConnectError as error:
                        reason = str(error)
                        if error.final:
                            raise StartFailedError(reason) from error
                        await asyncio.sleep(pause)
                        pause = min(pause * 2, 1.0)
                    else:
                        break
        except TimeoutError:
            raise StartFailedError(reason or f"did not answer initialize within {timeout:g} s") from None
        self.connection = connection
        self.message = None
        self.catalogue.invalidate_all()
        try:
            await self._list_everything()
            await self._subscribe_again()
        except asyncio.CancelledError:
            await connection.close()
            raise
        self._settle("ready")
        return connection

    async def _open(self) -> Connection:
        connection = self._connect(self.definition, self._heard)
        try:
            await connection.open(skip_probe=self._skip_probe)
        except CouldNotConnectError:
            await connection.close()
            raise
        except ConnectionEndedError as error:
            await connection.close()
            if not self._skip_probe:
                # Some legacy servers exit when their first message is not `initialize`.
                self._skip_probe = True
                return await self._open()
            raise StartFailedError(f"{error} before it answered initialize") from error
        except RpcError as error:
            await connection.close()
            raise StartFailedError(f"refused to start a session: {error.message}") from error
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _list_everything(self) -> None:
        for kind in KINDS:
            if not await self.refresh(kind):
                return

    async def _subscribe_again(self) -> None:
        if self.connection is not None and self.subscriptions:
            with suppress(RpcError, ConnectionEndedError):
                await self.connection.subscribe(frozenset(self.subscriptions))

    def _settle(self, state: State) -> None:
        self.state = state
        self._settled.set()
        self._changed()

    # Use

    async def settled(self) -> None:
        """Returns once the server is not `starting`."""
        await self._settled.wait()

    def needs_refresh(self, kind: Kind) -> bool:
        return self.state == "ready" and time.monotonic() >= self.catalogue.listing(kind).good_until

    async def refresh(self, kind: Kind) -> bool:
        """Bring a list up to date within LISTING_TIMEOUT_S; on failure the last known one stays, and the message tells.
        Returns whether it is up to date."""
        connection = self.connection
        if connection is None:
            return False
        try:
            async with asyncio.timeout(LISTING_TIMEOUT_S):
                await self.catalogue.refresh(kind, connection)
        except TimeoutError:
            self.message = f"did not list its {kind} within {LISTING_TIMEOUT_S:g} s"
        except RpcError as error:
            self.message = self.redact(f"could not list its {kind}: {error.message}")
        except ConnectionEndedError as error:
            self.message = self.redact(str(error))
        else:
            return True
        self.catalogue.postpone(kind, LISTING_PAUSE_S)
        logger.warning("server %s %s", self.name, self.message)
        return False

    async def request(self, method: str, params: dict[str, Any], caller: Caller) -> Result:
        """Raises: RpcError, which names this server where the gateway and not the server made it."""
        connection = await self.available()
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await connection.request(method, params, caller)
        except ConnectionEndedError as error:
            raise self._gone(str(error)) from error
        except TimeoutError:
            raise self._gone(f"did not answer {method} within {CALL_TIMEOUT_S:g} s") from None

    async def available(self) -> Connection:
        """The connection; waits a while for a server that is being (re)started. Raises: RpcError."""
        if self.connection is None or self.state != "ready":
            try:
                async with asyncio.timeout(CALL_WAITS_FOR_RESTART_S):
                    await self.settled()
            except TimeoutError:
                raise self._gone(f"is not ready yet{f': it {self.message}' if self.message else ''}") from None
        if self.connection is None:
            raise self._gone(self.message or "is not running")
        return self.connection

    def _gone(self, how: str) -> RpcError:
        return RpcError(INTERNAL_ERROR, self.redact(f"server {self.name!r} {how}"), {"server": self.name})

    # What the server says on its own

    def _heard(self, method: str, params: dict[str, Any]) -> None:
        if capability := LIST_CHANGED.get(method):
            self.catalogue.invalidate(capability)
            if capability in self._relisting:
                return  # every session to a remote server may hear of the same change
            self._relisting.add(capability)
            task = asyncio.create_task(self._relist(capability, method, params), name=f"relist {self.name}")
            self._refreshing.add(task)
            task.add_done_callback(self._refreshing.discard)
        else:
            self._on_notification(self, method, params)

    async def _relist(self, capability: str, method: str, params: dict[str, Any]) -> None:
        """Learn the new names before the clients are told, so that whatever they call next is known."""
        await asyncio.sleep(RELIST_AFTER_S)
        self._relisting.discard(capability)
        for kind in KINDS:
            if CAPABILITY[kind] == capability:
                await self.refresh(kind)
        self._on_notification(self, method, params)

    def status(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "state": self.state,
            "message": self.message,
            "stderr": [self.redact(line) for line in self._stderr()],
            "restarts": self.restarts,
            "tools": len(self.catalogue.items("tools")),
        }
