"""Who is behind a request: what an upstream has to know of one downstream request, in either era."""

from collections.abc import Callable, Hashable
from typing import Any

from sandgate_gateway.jsonrpc import RpcError
from sandgate_gateway.protocol import (
    CLIENT_REQUESTS,
    INVALID_REQUEST,
    LATEST_LEGACY_VERSION,
    METHOD_NOT_FOUND,
    Era,
)

Tell = Callable[[str, dict[str, Any]], None]


def _nobody_listens(method: str, params: dict[str, Any]) -> None:
    return


class Caller:
    """One request of one client on its way through the gateway. Subclasses know how to reach the client."""

    era: Era = "legacy"
    key: Hashable = None
    """The same for all requests of one client session; requests of stateless clients have one each."""
    capabilities: dict[str, Any] = {}
    protocol_version: str = LATEST_LEGACY_VERSION
    log_level: str | None = None
    """The level the client asked for; None where it asked for none."""
    progress_token: int | str | None = None
    tell: Tell = staticmethod(_nobody_listens)
    """Puts a notification that belongs to no request where this client hears of such; silent if it can't."""
    lacked_capability: str | None = None
    """A capability a server needed during this request and the client does not have."""

    def has_capability_for(self, method: str) -> bool:
        return CLIENT_REQUESTS.get(method) in self.capabilities

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """Put a notification on the stream of this request; silent once the request is answered."""

    async def ask(self, method: str, params: Any) -> Any:
        """Have the client answer a server's request. Raises: RpcError with the client's refusal."""
        raise RpcError(METHOD_NOT_FOUND, f"no client can answer {method}")


def call_is_over() -> RpcError:
    """What a server is told that asks something in a call for whose answer the client does not wait any more."""
    return RpcError(INVALID_REQUEST, "the call that this belongs to is over")


class GatewayItself(Caller):
    """The gateway's own housekeeping: probing, listing, subscribing. Nobody to ask, nothing to notify."""

    key = "gateway"


GATEWAY = GatewayItself()
