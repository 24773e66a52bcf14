"""Messages as bytes: a result passes unread where it can be cut out, and only there."""

import json
from typing import Any

import pytest
from sandgate_gateway.cursors import Cursors
from sandgate_gateway.jsonrpc import MAX_VALUES, Result, RpcError, has_too_many_values, parse_message, response


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":7,"result":{"x": 1.0, "big":12345678901234567890123}}',
        b'{"result":{"x": 1.0, "big":12345678901234567890123},"jsonrpc":"2.0","id":7}',
    ],
)
def test_the_bytes_of_a_result_are_passed_on_as_they_are(line: bytes) -> None:
    message, raw = parse_message(line)
    assert message["id"] == 7
    answer = response("client-1", Result(message["result"], raw))
    assert answer == b'{"jsonrpc":"2.0","id":"client-1","result":{"x": 1.0, "big":12345678901234567890123}}'


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":7,"result":{},"id":8}',
        b'{"jsonrpc":"2.0","id":7,"result":{},"error":{}}',
        b'{"result":{},"id":8,"jsonrpc":"2.0","id":7}',
        b'{"id":7,"jsonrpc":"2.0","result":{}}',
    ],
)
def test_a_response_with_anything_else_in_it_is_never_cut(line: bytes) -> None:
    assert parse_message(line)[1] is None


@pytest.mark.parametrize("line", [b"hello", b"[]", b"1", b'{"jsonrpc":"2.0","id":7,"result":{}', b"\xff"])
def test_what_is_not_an_object_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the parser's own words are of no interest)
        parse_message(line)


@pytest.mark.parametrize(
    ("value", "is_too_much"),
    [
        ([[]] * MAX_VALUES, True),
        ({str(number): number for number in range(MAX_VALUES + 2)}, True),
        ([""] * (MAX_VALUES + 2), True),
        ("[]," * MAX_VALUES, False),
        ({'a"\\': ['\\",', "\\"] * 1000 + [",\\" * MAX_VALUES]}, False),
        ([0] * (MAX_VALUES - 2), False),
    ],
)
def test_values_are_counted_before_they_take_memory(value: Any, is_too_much: bool) -> None:
    assert has_too_many_values(json.dumps(value).encode()) is is_too_much


def test_members_are_put_in_front_of_the_bytes() -> None:
    for raw in (b'{"content":[ ]}', b"{ }"):
        result = Result(json.loads(raw), raw).with_members({"resultType": "complete"})
        assert json.loads(result.raw) == result.value
        assert result.value["resultType"] == "complete"


def test_a_cursor_leads_back_and_a_made_up_one_does_not() -> None:
    cursors = Cursors(b"key")
    assert cursors.open("tools", cursors.seal("tools", 1000)) == 1000
    for cursor in ("", "x", "bm9uc2Vuc2U", 3, cursors.seal("prompts", 1), Cursors(b"other").seal("tools", 1)):
        with pytest.raises(RpcError):
            cursors.open("tools", cursor)
