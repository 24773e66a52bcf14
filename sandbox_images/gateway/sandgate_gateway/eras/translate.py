"""Off the diagonal: a modern server's answers for legacy clients, a legacy server's answers for modern ones."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from sandgate_gateway.callers import Caller
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.protocol import GATEWAY_INFO, INTERNAL_ERROR, META_SERVER_INFO, URL_ELICITATION_REQUIRED, Era

MAX_ROUNDS = 10
"""Of questions within one call; the official SDKs stop there too."""

_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.05, 0.25
"""Between rounds without a question: the server only asks to be called again."""

_MODERN_MEMBERS = ("resultType", "ttlMs", "cacheScope")
_CACHED_METHODS = frozenset({"resources/read"})

Request = Callable[[str, dict[str, Any], Caller], Awaitable[Result]]


async def answer_inputs(request: Request, method: str, params: dict[str, Any], caller: Caller) -> Result:
    """Call a modern server for a legacy client: what it requires as input the client is asked for on the call's stream,
    then the call is repeated (SEP-2322). Raises: RpcError, the client's refusal included."""
    pause = _FIRST_PAUSE_S
    current = params
    for _ in range(MAX_ROUNDS):
        result = await request(method, current, caller)
        if not isinstance(result.value, dict) or result.value.get("resultType") != "input_required":
            return result
        current = dict(params)
        questions = result.value.get("inputRequests")
        if isinstance(questions, dict) and questions:
            current["inputResponses"] = {key: await _ask(caller, question) for key, question in questions.items()}
        else:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)
        if "requestState" in result.value:
            current["requestState"] = result.value["requestState"]
    raise RpcError(INTERNAL_ERROR, f"the server asked for input more than {MAX_ROUNDS} times in one call")


async def answer_urls(request: Request, method: str, params: dict[str, Any], caller: Caller) -> Result:
    """Call a legacy server for a modern client: where it wants URLs visited first (error -32042, gone in 2026-07-28),
    the client is asked to, then the call is repeated. Raises: RpcError."""
    for _ in range(MAX_ROUNDS):
        try:
            return await request(method, params, caller)
        except RpcError as error:
            elicitations = error.data.get("elicitations") if isinstance(error.data, dict) else None
            if error.code != URL_ELICITATION_REQUIRED or not isinstance(elicitations, list) or not elicitations:
                raise
        for elicitation in elicitations:
            answer = await caller.ask("elicitation/create", elicitation)
            if not isinstance(answer, dict) or answer.get("action") != "accept":
                raise RpcError(INTERNAL_ERROR, "the server needs a URL to be visited first, and the client declined")
    raise RpcError(INTERNAL_ERROR, f"the server asked for URLs to be visited more than {MAX_ROUNDS} times in one call")


async def _ask(caller: Caller, question: Any) -> Any:
    match question:
        case {"method": str(method)}:
            params = question.get("params")
            if method == "elicitation/create" and isinstance(params, dict) and params.get("mode") == "url":
                params = {"elicitationId": str(uuid.uuid4()), **params}  # required up to 2025-11-25, gone since
            return await caller.ask(method, params)
        case _:
            raise RpcError(INTERNAL_ERROR, "the server sent an input request without a method")


def input_request(method: str, params: Any) -> dict[str, Any]:
    """A legacy server's request to the client as an entry of `inputRequests`."""
    if isinstance(params, dict):
        params = {key: value for key, value in params.items() if key not in ("elicitationId", "task")}
        meta = params.get("_meta")
        if isinstance(meta, dict):
            params["_meta"] = {key: value for key, value in meta.items() if key != "progressToken"}
            if not params["_meta"]:
                del params["_meta"]
    return {"method": method} if params is None else {"method": method, "params": params}


def result_for(client: Era, server: Era, method: str, result: Result) -> Result:
    """A server's result as a client of the other era must see it; on the diagonal it stays as it is.

    But for one thing: a modern result without `resultType` counts as complete, and some clients want to read that.
    """
    if not isinstance(result.value, dict):
        return result
    if client == server:
        missing = client == "modern" and "resultType" not in result.value
        return result.with_members({"resultType": "complete"}) if missing else result
    if client == "modern":
        return _modernized(method, result)
    value = {key: member for key, member in result.value.items() if key not in _MODERN_MEMBERS}
    meta = value.get("_meta")
    if isinstance(meta, dict) and META_SERVER_INFO in meta:
        value["_meta"] = {key: entry for key, entry in meta.items() if key != META_SERVER_INFO}
        if not value["_meta"]:
            del value["_meta"]
    return Result(value) if value != result.value else result


def _modernized(method: str, result: Result) -> Result:
    members: dict[str, Any] = {"resultType": "complete"}
    if method in _CACHED_METHODS:
        members |= {"ttlMs": 0, "cacheScope": "private"}
    own_meta = result.value.get("_meta")
    if isinstance(own_meta, dict) or members.keys() & result.value.keys():
        meta = {META_SERVER_INFO: GATEWAY_INFO, **(own_meta if isinstance(own_meta, dict) else {})}
        return Result({**result.value, **members, "_meta": meta})
    return result.with_members({**members, "_meta": {META_SERVER_INFO: GATEWAY_INFO}})
