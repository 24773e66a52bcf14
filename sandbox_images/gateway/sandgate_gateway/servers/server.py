"""One configured MCP server, kept running: start within its bound, restart with back-off, state for `/status`."""

import asyncio
import logging
import time
import traceback
from collections.abc import Callable
from typing import Any, Literal

from sandgate_gateway.callers import Caller
from sandgate_gateway.configuration import HttpTransport, ServerDefinition, SseTransport, Transport
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.lists import CAPABILITY, KINDS, Kind, Offer
from sandgate_gateway.protocol import INTERNAL_ERROR, LATEST_LEGACY_VERSION, LIST_CHANGED, Era
from sandgate_gateway.redaction import Redactor
from sandgate_gateway.servers.catalogue import Catalogue
from sandgate_gateway.upstreams.connection import (
    Connection,
    ConnectionEndedError,
    CouldNotConnectError,
    Listener,
    NotDeliveredError,
    OldTransportError,
)

logger = logging.getLogger(__name__)

State = Literal["idle", "starting", "ready", "failed"]
"""`idle`: a lazy server nobody has needed yet."""

FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 30.0
STABLE_AFTER_S = 60.0
"""A run of this length makes the back-off start anew."""

LISTING_TIMEOUT_S = 5.0
"""Bound of reading one list; clients wait for the slowest server, but no longer than this."""

RELIST_AFTER_S = 0.02
"""Changes that are told several times are read once."""

RELIST_PAUSE_S = 0.5
"""Between two such readings: a server may tell of changes all the time."""

LISTING_PAUSE_S = 10.0
"""Before a server that failed to list is asked again."""

CALL_TIMEOUT_S = 3600.0
"""A call a person still waits for; clients have bounds of their own."""

CALL_WAITS_FOR_RESTART_S = 10.0

_MARGIN_S = 10.0
"""Beyond the bound of a start: reading the lists belongs to it, too."""

Connect = Callable[[Transport, Listener], Connection]


class StartFailedError(Exception):
    """The server can't be started; the message follows its name."""


class ServerStoppedError(RpcError):
    """The server was taken away, or replaced by another of its name, before the request reached it."""


class Server:
    """`run` is the server's life; everything else looks at it or uses its connection."""

    def __init__(
        self,
        definition: ServerDefinition,
        *,
        connect: Connect,
        subscriptions: dict[str, int],
        stderr: Callable[[], list[str]],
        changed: Callable[[], None],
        on_notification: Callable[["Server", str, dict[str, Any]], None],
    ) -> None:
        self.definition = definition
        self.name = definition.name
        self.state: State = "idle" if definition.starts_lazily else "starting"
        self.message: str | None = None
        self.restarts = 0
        self.catalogue = Catalogue(changed)
        self.connection: Connection | None = None
        self.capabilities: dict[str, Any] | None = None
        """As declared last, or as remembered; None while nobody knows."""
        self.instructions = ""
        self.era: Era = "legacy"
        self.subscriptions = subscriptions
        """The server's own URI -> how many clients want its updates. The next server of this name goes on with it."""
        self.redact = Redactor(definition.secrets)
        self._connect = connect
        self._transport = definition.transport
        """As configured, or the older one the server was found to speak."""
        self._stderr = stderr
        self._changed = changed
        self._on_notification = on_notification
        self._settled = asyncio.Event()
        self._wanted = asyncio.Event()
        if not (definition.starts_lazily or definition.may_wait_in_line):
            self._wanted.set()
        self._disconnected = asyncio.Event()
        self._is_stopped = False
        self._was_ready = False
        self._protocol_version = LATEST_LEGACY_VERSION
        self._digest: tuple[int, str] | None = None
        self._skip_probe = False
        self._oddity: str | None = None
        """Of the connection that was tried last."""
        self._relisting: set[str] = set()
        """Capabilities whose lists are about to be read again."""
        self._refreshing: set[asyncio.Task[None]] = set()
        self._relisted_at = -RELIST_PAUSE_S
        self._remember(definition.remembered)

    def redefine(self, definition: ServerDefinition) -> None:
        """Go on by another definition that `runs_like` the one before."""
        self.definition = definition
        if not self._was_ready and self.state != "failed":
            self._remember(definition.remembered)
        if not (definition.starts_lazily or (self.is_in_line and definition.may_wait_in_line)):
            self.wake()

    def _remember(self, offer: Offer | None) -> None:
        if offer is not None:
            self.catalogue.remember(offer)
            self.capabilities, self.instructions, self.era = offer.capabilities, offer.instructions, offer.era

    # Life

    def wake(self) -> None:
        """Start the server if it is idle or waits in line. Safe to repeat."""
        if self.state == "idle":
            self.state = "starting"
        self._wanted.set()

    async def run(self) -> None:
        """Runs until cancelled, or until the server has failed for good."""
        try:
            await self._live()
        except Exception as error:  # noqa: BLE001 (whatever it is, it has to be told)
            logger.error("server %s failed: %s", self.name, self.redact("".join(traceback.format_exception(error))))
            self.message = f"failed in a way the gateway does not know ({type(error).__name__}); its log tells more"
            self._fail()

    def stopped(self) -> None:
        """Its life was ended from outside, and it is in no fleet any more: whoever waits for it need not."""
        self._is_stopped = True
        self.state, self.message = "failed", "was stopped"
        self._settled.set()

    def _fail(self) -> None:
        self.catalogue.withdraw()
        self.capabilities, self.instructions = None, ""
        self._settle("failed")

    async def _live(self) -> None:
        await self._wanted.wait()
        backoff = FIRST_BACKOFF_S
        while True:
            try:
                connection = await self._start()
            except StartFailedError as error:
                self.message = self.redact(str(error))
                logger.warning("server %s %s", self.name, self.message)
                if not self.restarts:
                    self._fail()
                    return
            else:
                started = time.monotonic()
                try:
                    how = await connection.wait_ended()
                finally:
                    self.connection = None
                    self.state = "starting"
                    self._settled.clear()
                    self._disconnected.set()
                    await connection.close()
                if time.monotonic() - started >= STABLE_AFTER_S:
                    backoff = FIRST_BACKOFF_S
                self.message = self.redact(how)
                logger.warning("server %s %s and is restarted", self.name, self.message)
            self.restarts += 1
            self._changed()
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF_S)

    async def _start(self) -> Connection:
        """One start within the bound of the definition. Raises: StartFailedError."""
        timeout = self.definition.start_timeout_s
        self._transport = self.definition.transport
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
            reason = reason or f"did not answer initialize within {timeout:g} s"
            raise StartFailedError(f"{reason}; it {self._oddity}" if self._oddity else reason) from None
        self.connection = connection
        self._disconnected.clear()
        self.capabilities, self.instructions = connection.capabilities, connection.instructions
        self.era, self._protocol_version = connection.era, connection.protocol_version
        self.message = None
        self.catalogue.invalidate_all()
        try:
            await self._list_everything()
            if self.subscriptions:
                await self.subscribe(LISTING_TIMEOUT_S)
        except BaseException:
            self.connection = None
            await connection.close()
            raise
        self._was_ready = True
        self._settle("ready")
        return connection

    async def _open(self) -> Connection:
        connection = self._connect(self._transport, self._heard)
        try:
            await connection.open(skip_probe=self._skip_probe)
        except OldTransportError:
            await connection.close()
            assert isinstance(self._transport, HttpTransport)
            old = self._transport
            self._transport = SseTransport(old.url, old.headers, old.allow_private)
            return await self._open()
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
            self._oddity = connection.oddity
            await connection.close()
            raise
        return connection

    async def _list_everything(self) -> None:
        for kind in KINDS:
            if not await self.refresh(kind):
                return

    async def subscribe(self, timeout_s: float) -> dict[str, RpcError]:
        """Tell the server which updates clients want now; a new connection is told anyway. Gives what it refuses, or
        does not answer for in time, by its own URI."""
        if self.connection is None:
            return {}
        return await self.connection.subscribe(frozenset(self.subscriptions), timeout_s)

    def _settle(self, state: State) -> None:
        self.state = state
        self._settled.set()
        self._changed()

    # Use

    @property
    def is_settled(self) -> bool:
        return self.state == "idle" or self._settled.is_set()

    async def settled(self) -> None:
        """Returns once the server is not `starting`."""
        if not self.is_settled:
            await self._settled.wait()

    @property
    def is_in_line(self) -> bool:
        """It is to start, and waits for its turn or for somebody who needs it."""
        return self.state == "starting" and not self._wanted.is_set()

    @property
    def is_listed(self) -> bool:
        """Whether what it offers is known, be it from memory."""
        return self.state != "failed" and (self._was_ready or self.definition.remembered is not None)

    def offer(self, *, partial: bool = False) -> Offer | None:
        """What the server itself says it offers; None if it never was ready, or has not answered for every list.

        With `partial` the lists that it has not answered for are empty.
        """
        if not (self._was_ready and (partial or self.catalogue.is_read)):
            return None
        return Offer(
            lists={kind: listing.items for kind in KINDS if (listing := self.catalogue.listing(kind)).is_read},
            capabilities=self.capabilities or {},
            instructions=self.instructions,
            era=self.era,
            protocol_version=self._protocol_version,
        )

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
        """Raises: RpcError, which names this server where the gateway and not the server made it; ServerStoppedError if
        it did not reach the server."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                connection = await self.available()
                try:
                    return await connection.request(method, params, caller)
                except NotDeliveredError:
                    if self.connection is connection:  # the news is faster than the run of the server
                        await self._disconnected.wait()
                return await (await self.available()).request(method, params, caller)
        except ConnectionEndedError as error:
            raise self._gone(str(error)) from error
        except TimeoutError:
            raise self._gone(f"did not answer {method} within {CALL_TIMEOUT_S:g} s") from None

    async def available(self) -> Connection:
        """The connection; waits for a server that is being started, a while for one that is restarted. Raises:
        RpcError, ServerStoppedError for one whose place another may have."""
        if self.connection is None or self.state != "ready":
            self.wake()
            patience = CALL_WAITS_FOR_RESTART_S if self._was_ready else self.definition.start_timeout_s + _MARGIN_S
            try:
                async with asyncio.timeout(patience):
                    await self._settled.wait()
            except TimeoutError:
                raise self._gone(f"is not ready yet{f': it {self.message}' if self.message else ''}") from None
        if self._is_stopped:
            raise ServerStoppedError(INTERNAL_ERROR, f"server {self.name!r} was stopped", {"server": self.name})
        if self.connection is None:
            raise self.failure()
        return self.connection

    def failure(self) -> RpcError:
        """What a call to a server that is not there is answered with."""
        return self._gone(self.message or "is not running")

    def _gone(self, how: str) -> RpcError:
        return RpcError(INTERNAL_ERROR, self.redact(f"server {self.name!r} {how}"), {"server": self.name})

    # What the server says on its own

    def _heard(self, method: str, params: dict[str, Any]) -> None:
        if capability := LIST_CHANGED.get(method):
            self.catalogue.invalidate(capability)
            if capability in self._relisting:
                return  # every session to a remote server may hear of the same change
            self._relisting.add(capability)
            pause = max(RELIST_AFTER_S, self._relisted_at + RELIST_PAUSE_S - time.monotonic())
            work = self._relist(capability, method, params, pause)
            task = asyncio.create_task(work, name=f"relist {self.name}")
            self._refreshing.add(task)
            task.add_done_callback(self._refreshing.discard)
        else:
            self._on_notification(self, method, params)

    async def _relist(self, capability: str, method: str, params: dict[str, Any], pause: float) -> None:
        """Learn the new names before the clients are told, so that whatever they call next is known."""
        await asyncio.sleep(pause)
        self._relisting.discard(capability)
        self._relisted_at = time.monotonic()
        for kind in KINDS:
            if CAPABILITY[kind] == capability:
                await self.refresh(kind)
        self._on_notification(self, method, params)

    def status(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "state": self.state,
            "listed": self.is_listed,
            "message": self.message or self.catalogue.amiss,
            "stderr": [self.redact(line) for line in self._stderr()],
            "restarts": self.restarts,
            "tools": len(self.catalogue.items("tools")),
            "digest": self._offer_digest(),
        }

    def _offer_digest(self) -> str | None:
        version = self.catalogue.version
        if self._digest is None or self._digest[0] != version:
            offer = self.offer()
            if offer is None:
                return None
            self._digest = (version, offer.as_json()["digest"])
        return self._digest[1]
