"""Connections to remote servers. Imported only where there are any, because the HTTP client below is not small."""

from sandgate_gateway.configuration import HttpTransport, SseTransport
from sandgate_gateway.upstreams.connection import Connection, Listener
from sandgate_gateway.upstreams.http import HttpConnection
from sandgate_gateway.upstreams.http_exchange import HttpExchanges
from sandgate_gateway.upstreams.sse_connection import SseConnection


def connect_remote(
    name: str, listener: Listener, transport: HttpTransport | SseTransport, session_timeout_s: float
) -> Connection:
    """`session_timeout_s` is how long the server may take to open a session for a client.

    Raises: CouldNotConnectError for a URL that must not be used.
    """
    exchanges = HttpExchanges(transport.url, transport.headers, allow_private=transport.allow_private)
    if isinstance(transport, SseTransport):
        return SseConnection(name, listener, exchanges)
    return HttpConnection(name, listener, exchanges, session_timeout_s)
