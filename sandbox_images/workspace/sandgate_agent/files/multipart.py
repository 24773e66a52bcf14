"""The files of a multipart/form-data body, as they arrive.

A file's name is taken whole from its part's header: E2B's SDKs put the full path there, and most form parsers keep only
what follows the last slash.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from sandgate_agent.errors import InvalidArgument

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_HEADER_LIMIT = 1 << 14
"""Bytes of one part header: a path may have 4096 bytes, which quoting can double."""


@dataclass(frozen=True, slots=True)
class PartBegins:
    field: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class PartData:
    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnds:
    pass


PartEvent = PartBegins | PartData | PartEnds


class _Collector:
    """Turns the parser's callbacks into events."""

    def __init__(self) -> None:
        self.events: list[PartEvent] = []
        self.is_complete = False
        self._headers: dict[bytes, bytes] = {}
        self._name = b""
        self._value = b""

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        filename = options.get(b"filename")
        self.events.append(
            PartBegins(
                field=options.get(b"name", b"").decode("utf-8", errors="replace"),
                filename=None if filename is None else _text(filename),
            )
        )

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.events.append(PartData(data[start:end]))

    def _on_part_end(self) -> None:
        self.events.append(PartEnds())

    def _on_end(self) -> None:
        self.is_complete = True


async def parse_multipart(content_type: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[PartEvent]:
    """Raises: InvalidArgument when the body is not what its header says, or ends too early."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise InvalidArgument("the multipart body has no boundary")
    collector = _Collector()
    try:
        parser = MultipartParser(boundary, collector.callbacks(), max_header_size=_HEADER_LIMIT)
        async for chunk in chunks:
            parser.write(chunk)
            events, collector.events = collector.events, []
            for event in events:
                yield event
    except FormParserError as error:
        raise InvalidArgument(f"the multipart body is malformed: {error}") from error
    if not collector.is_complete:
        raise InvalidArgument("the multipart body ends before its last boundary")


def _text(filename: bytes) -> str:
    try:
        return filename.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument("the name of a file is not UTF-8") from error
