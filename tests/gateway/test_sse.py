"""Server-sent events, written and read, however the bytes are cut."""

import pytest
from sandgate_gateway.sse import Event, EventReader, EventTooLongError, encode_event, encode_priming

STREAM = (
    b": comment\n\nid: 1\nevent: message\ndata: {\ndata:  1}\n\r\n"
    b"data:x\r\rid: 2\nretry: 100\ndata: \n\nevent: endpoint\ndata: /messages\n\n"
)
EVENTS = [
    Event("message", b"{\n 1}", "1"),
    Event("message", b"x", None),
    Event("message", b"", "2", 100),
    Event("endpoint", b"/messages", None),
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 11, 500])
def test_events_are_the_same_however_they_are_cut(size: int) -> None:
    reader = EventReader()
    assert [e for at in range(0, len(STREAM), size) for e in reader.feed(STREAM[at : at + size])] == EVENTS


def test_an_event_that_was_written_is_read_back_as_one_line() -> None:
    assert EventReader().feed(encode_event(b'{"a":\r\n1}', "3-7")) == [Event("message", b'{"a":  1}', "3-7")]


def test_a_priming_event_has_an_id_and_no_data() -> None:
    assert EventReader().feed(encode_priming("3-0", 500)) == [Event("message", b"", "3-0", 500)]


@pytest.mark.parametrize("digits", [10, 400, 5000])
def test_a_pause_beyond_all_measure_is_passed_over(digits: int) -> None:
    said = b"retry: " + b"9" * digits + b"\ndata: x\n\n"
    assert EventReader().feed(said) == [Event("message", b"x", None)]


def test_an_event_without_end_is_refused_at_the_limit() -> None:
    reader = EventReader(limit=20)
    with pytest.raises(EventTooLongError):
        reader.feed(b"data: " + b"x" * 30)
