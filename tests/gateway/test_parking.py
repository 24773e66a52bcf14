"""Calls of modern clients that a legacy server asks something in."""

from typing import Any

from sandgate_gateway.downstream.parking import Call, ModernCaller, Parking
from sandgate_gateway.downstream.reply import EventStream, Reply

from tests.gateway.memory_connection import MemoryConnection
from tests.waiting import until

QUESTION: dict[str, Any] = {"id": "q", "method": "elicitation/create", "params": {"message": "?"}}
TOO_LATE = {
    "jsonrpc": "2.0",
    "id": "q",
    "error": {"code": -32600, "message": "the call that this belongs to is over"},
}


async def call_on(connection: MemoryConnection) -> Call:
    caller = ModernCaller(
        "tools/call",
        principal="token",
        client_info=None,
        capabilities={"elicitation": {}},
        version="2026-07-28",
        log_level=None,
        progress_token=None,
        reply=Reply(EventStream()),
    )
    call = Call(caller, connection.request("tools/call", {"name": "t"}, caller), name="call")
    await until(lambda: connection.sent)
    return call


async def test_a_question_in_a_parked_call_that_is_given_up_is_answered_with_an_error() -> None:
    connection, parking = MemoryConnection(), Parking()
    call = await call_on(connection)
    connection.say(QUESTION)
    assert await call.outcome() is None
    parking.park(call, "token", {"name": "t"})
    parking.close()
    await until(lambda: TOO_LATE in connection.sent)


async def test_a_question_that_comes_with_the_answer_to_its_call_is_answered_with_an_error() -> None:
    connection = MemoryConnection()
    call = await call_on(connection)
    connection.say(QUESTION, {"id": connection.sent[0]["id"], "result": {"content": []}})
    result = await call.outcome()
    assert result is not None
    assert result.value == {"content": []}
    await until(lambda: TOO_LATE in connection.sent)
