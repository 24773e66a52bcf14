"""Server-sent events: writing them, and reading them from a stream of bytes. Pure.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from dataclasses import dataclass

KEEP_ALIVE = b": keep-alive\n\n"
MAX_EVENT = 32 * 1024 * 1024
"""Bytes of one event."""
_RETRY_DIGITS = 9
"""Eleven days in milliseconds; what is longer is no time that anybody waits."""


def encode_event(data: bytes, event_id: str | None = None) -> bytes:
    """One `message` event. JSON text may contain line ends as blanks; in an event they would end the line."""
    if b"\r" in data or b"\n" in data:
        data = data.replace(b"\r", b" ").replace(b"\n", b" ")
    head = b"" if event_id is None else b"id: %b\n" % event_id.encode()
    return b"event: message\n%bdata: %b\n\n" % (head, data)


def encode_priming(event_id: str, retry_ms: int) -> bytes:
    """An event without data: gives the client an id to resume from before anything has happened (2025-11-25)."""
    return b"id: %b\nretry: %d\ndata: \n\n" % (event_id.encode(), retry_ms)


@dataclass(frozen=True)
class Event:
    name: str
    data: bytes
    identifier: str | None
    retry_ms: int | None = None


class EventTooLongError(Exception):
    """A stream brought more than MAX_EVENT bytes without the end of an event."""


class EventReader:
    """Cuts a stream of bytes into events; comments and unknown fields are skipped."""

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._searched = 0
        self._skip_newline = False
        self._name = ""
        self._data: list[bytes] = []
        self._held = 0
        self._identifier: str | None = None
        self._retry_ms: int | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """The events this chunk completes. Raises: EventTooLongError."""
        if self._skip_newline and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._skip_newline = False
        self._rest += chunk
        if len(self._rest) + self._held > self._limit:
            raise EventTooLongError(f"an event of more than {self._limit} bytes")
        if not (b"\n" in chunk or b"\r" in chunk):
            return []
        # A line ends with \n, \r or \r\n; the \n of the last kind may come with the next chunk.
        self._skip_newline = self._rest.endswith(b"\r")
        *lines, rest = bytes(self._rest).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = bytearray(rest)
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> Event | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match field:
            case b"data":
                self._data.append(value)
                self._held += len(value)
            case b"event":
                self._name = value.decode("utf-8", "replace")
            case b"id" if b"\0" not in value:
                self._identifier = value.decode("utf-8", "replace")
            case b"retry" if value.isdigit() and len(value) <= _RETRY_DIGITS:
                self._retry_ms = int(value)
        return None

    def _dispatch(self) -> Event | None:
        if not self._data and self._identifier is None and self._retry_ms is None:
            self._name = ""
            return None
        event = Event(self._name or "message", b"\n".join(self._data), self._identifier, self._retry_ms)
        self._name, self._data, self._held = "", [], 0
        self._identifier, self._retry_ms = None, None
        return event
