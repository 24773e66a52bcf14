"""Byte framing of the doors to a server's stdin and stdout: lines of JSON, and the stdio frames around them. Pure."""

from enum import IntEnum

MAX_MESSAGE = 32 * 1024 * 1024
"""Bytes of one JSON line. A server that sends more without a line end has lost its mind, or the gateway its memory."""


class MessageTooLongError(Exception):
    """A peer sent more than the allowed bytes without the end of a message."""


class LineReader:
    """Cuts a stream of bytes at line ends. Looks at every byte once, however the chunks fall."""

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._held = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines this chunk completes, without their ends and without empty ones. Raises: MessageTooLongError."""
        first, *rest = data.split(b"\n")
        self._hold(first)
        if not rest:
            return []
        lines = [b"".join(self._parts), *rest[:-1]]
        self._parts, self._held = [], 0
        self._hold(rest[-1])
        return [stripped for line in lines if (stripped := line.strip())]

    def _hold(self, part: bytes) -> None:
        if part:
            self._held += len(part)
            if self._held > self._limit:
                self._parts.clear()
                raise MessageTooLongError(f"a message of more than {self._limit} bytes")
            self._parts.append(part)


class FrameKind(IntEnum):
    """Kinds of stdio frames (docs/ARCHITECTURE.md, 6.2)."""

    STDOUT = 1
    STDERR = 2
    EXIT = 3


_FRAME_HEAD = 5
MAX_FRAME = 16 * 1024 * 1024


class FrameReader:
    """Reads stdio frames: 1 byte kind, 4 bytes big-endian length, payload."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The (kind, payload) frames this chunk completes. Raises: MessageTooLongError."""
        self._buffer += data
        frames: list[tuple[int, bytes]] = []
        start = 0
        while len(self._buffer) - start >= _FRAME_HEAD:
            length = int.from_bytes(self._buffer[start + 1 : start + _FRAME_HEAD], "big")
            if length > MAX_FRAME:
                raise MessageTooLongError(f"a frame of {length} bytes")
            end = start + _FRAME_HEAD + length
            if len(self._buffer) < end:
                break
            frames.append((self._buffer[start], bytes(self._buffer[start + _FRAME_HEAD : end])))
            start = end
        del self._buffer[:start]
        return frames
