"""Lines of JSON and stdio frames, however the bytes are cut."""

import pytest
from sandgate_gateway.framing import MAX_FRAME, FrameReader, LineReader, MessageTooLongError

LINES = b'{"a":1}\r\n\n  {"b":"\xc3\xa4"}\n{"c":3}\n'


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_are_the_same_however_they_are_cut(size: int) -> None:
    reader = LineReader()
    lines = [line for at in range(0, len(LINES), size) for line in reader.feed(LINES[at : at + size])]
    assert lines == [b'{"a":1}', b'{"b":"\xc3\xa4"}', b'{"c":3}']


def test_a_line_without_end_is_refused_at_the_limit() -> None:
    reader = LineReader(limit=10)
    assert reader.feed(b"12345") == []
    with pytest.raises(MessageTooLongError):
        reader.feed(b"678901")


@pytest.mark.parametrize("size", [1, 4, 5, 6, 100])
def test_frames_are_the_same_however_they_are_cut(size: int) -> None:
    data = b"\x01\x00\x00\x00\x05hello" + b"\x02\x00\x00\x00\x00" + b"\x03\x00\x00\x00\x02{}"
    reader = FrameReader()
    frames = [frame for at in range(0, len(data), size) for frame in reader.feed(data[at : at + size])]
    assert frames == [(1, b"hello"), (2, b""), (3, b"{}")]


def test_a_frame_of_absurd_length_is_refused() -> None:
    with pytest.raises(MessageTooLongError):
        FrameReader().feed(b"\x01" + (MAX_FRAME + 1).to_bytes(4, "big"))
