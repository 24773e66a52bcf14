"""Calls of modern clients that wait for the client's input (SEP-2322) because a legacy server asked for it in mid-call.

The legacy server's request can't be sent to a modern client. So the call stays open towards the server and is parked
here, and the client gets `input_required` with the questions and a sealed state; when it calls again with the answers
and that state, the parked call goes on. A state is good once, for the same request of the same principal, STATE_TTL_S.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Coroutine
from typing import Any

import orjson

from sandgate_gateway import jsonrpc
from sandgate_gateway.callers import Caller, call_is_over
from sandgate_gateway.downstream.reply import Reply
from sandgate_gateway.eras.translate import input_request
from sandgate_gateway.jsonrpc import Result, RpcError
from sandgate_gateway.protocol import (
    CLIENT_REQUESTS,
    GATEWAY_INFO,
    INTERACTIVE_METHODS,
    INVALID_PARAMS,
    INVALID_REQUEST,
    META_SERVER_INFO,
    MISSING_CLIENT_CAPABILITY,
)

STATE_TTL_S = 600.0
MAX_PARKED = 256
_PREFIX = "sandgate."
_TOGETHER_S = 0.02
"""Questions a server asks at the same time go out in one answer."""


class ModernCaller(Caller):
    """One logical call of a modern client, over all its rounds."""

    era = "modern"

    def __init__(
        self,
        method: str,
        *,
        principal: str,
        client_info: Any,
        capabilities: dict[str, Any],
        version: str,
        log_level: str | None,
        progress_token: int | str | None,
        reply: Reply,
    ) -> None:
        # Without sessions this is all there is to tell clients apart; calls of one client may carry each other's
        # questions, because an answer finds its way by the server's request.
        self.key = jsonrpc.encode([principal, client_info, capabilities], option=orjson.OPT_SORT_KEYS)
        self.capabilities = capabilities
        self.protocol_version = version
        self.log_level = log_level
        self.progress_token = progress_token
        self.reply = reply
        self.asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once there are questions for the client."""
        self.questions: dict[str, tuple[dict[str, Any], asyncio.Future[Any]]] = {}
        self.method = method
        self._count = 0
        self._is_over = False

    def notify(self, method: str, params: dict[str, Any]) -> None:
        if method in ("notifications/progress", "notifications/message"):
            self.reply.push(jsonrpc.notification(method, params))

    async def ask(self, method: str, params: Any) -> Any:
        if not self.has_capability_for(method) or not _has_mode(self.capabilities, method, params):
            self.lacked_capability = method
            raise RpcError(INVALID_REQUEST, f"the client cannot answer {method}: it did not declare the capability")
        if self.method not in INTERACTIVE_METHODS:
            raise RpcError(INVALID_REQUEST, f"{method} is not possible during {self.method}")
        if self._is_over:
            raise call_is_over()
        self._count += 1
        key = f"input-{self._count}"
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.questions[key] = (input_request(method, params), answer)
        self.has_asked()
        try:
            return await answer
        finally:
            self.questions.pop(key, None)

    def end(self) -> None:
        """The client has the answer, or is gone: nobody answers what is still asked, and the server is told so."""
        self._is_over = True
        for _, answer in self.questions.values():
            if not answer.done():
                answer.set_exception(call_is_over())

    def has_asked(self) -> None:
        if not self.asked.done():
            self.asked.set_result(None)


class Call:
    """The work behind a call, and the caller it can ask."""

    def __init__(self, caller: ModernCaller, work: Coroutine[Any, Any, Result], name: str) -> None:
        self.caller = caller
        self.task = asyncio.create_task(work, name=name)

    async def outcome(self) -> Result | None:
        """The result; None as long as there are open questions for the client. Raises: RpcError."""
        either: tuple[asyncio.Future[Any], ...] = (self.task, self.caller.asked)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self.task.done():
            await asyncio.wait((self.task,), timeout=_TOGETHER_S)
        if not self.task.done():
            return None
        self.caller.end()
        return self._judge()

    def _judge(self) -> Result:
        """A call that failed for want of a capability says so in the way clients understand (-32021)."""
        lacked = self.caller.lacked_capability
        try:
            result = self.task.result()
        except RpcError as error:
            if lacked is None:
                raise
            raise _missing(lacked) from error
        if lacked is not None and isinstance(result.value, dict) and result.value.get("isError"):
            raise _missing(lacked)
        return result

    def cancel(self) -> None:
        self.task.cancel()
        self.caller.end()


class Parking:
    """Parked calls by the secret in their state; bounded in number and time."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._calls: dict[str, tuple[Call, asyncio.TimerHandle]] = {}

    def park(self, call: Call, principal: str, params: dict[str, Any]) -> Result:
        """The `input_required` result for the client."""
        while len(self._calls) >= MAX_PARKED:
            oldest = next(iter(self._calls))
            self._take(oldest)[0].cancel()
        ticket = secrets.token_urlsafe(16)
        timer = asyncio.get_running_loop().call_later(STATE_TTL_S, self._expire, ticket)
        self._calls[ticket] = (call, timer)
        value = {
            "resultType": "input_required",
            "inputRequests": {key: question for key, (question, _) in call.caller.questions.items()},
            "requestState": self._seal(ticket, principal, params),
            "_meta": {META_SERVER_INFO: GATEWAY_INFO},
        }
        return Result(value)

    def resume(self, params: dict[str, Any], principal: str) -> Call | None:
        """The parked call this request continues, with its answers delivered; None if the state is not the gateway's.
        Raises: RpcError for a state that was tampered with, is used up or too old."""
        state = params.get("requestState")
        if not isinstance(state, str) or not state.startswith(_PREFIX):
            return None
        ticket = self._open(state, principal, params)
        if ticket not in self._calls:
            raise RpcError(INVALID_PARAMS, "unknown or expired requestState")
        responses = params.get("inputResponses")
        call, _ = self._take(ticket)
        call.caller.asked = asyncio.get_running_loop().create_future()
        for key, response in responses.items() if isinstance(responses, dict) else ():
            found = call.caller.questions.get(key)
            if found is not None and not found[1].done():
                found[1].set_result(response)
        if any(not answer.done() for _, answer in call.caller.questions.values()):
            call.caller.has_asked()  # what is still open is asked again
        return call

    def close(self) -> None:
        for ticket in list(self._calls):
            self._expire(ticket)

    def _take(self, ticket: str) -> tuple[Call, asyncio.TimerHandle]:
        call, timer = self._calls.pop(ticket)
        timer.cancel()
        return call, timer

    def _expire(self, ticket: str) -> None:
        if ticket in self._calls:
            self._take(ticket)[0].cancel()

    def _seal(self, ticket: str, principal: str, params: dict[str, Any]) -> str:
        payload = orjson.dumps([ticket, int(time.time() + STATE_TTL_S), _digest(principal, params)])
        return _PREFIX + base64.urlsafe_b64encode(self._mac(payload) + payload).decode().rstrip("=")

    def _open(self, state: str, principal: str, params: dict[str, Any]) -> str:
        sealed = state.removeprefix(_PREFIX)
        try:
            data = base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))
        except (binascii.Error, ValueError):
            data = b""
        mac, payload = data[:32], data[32:]
        if not hmac.compare_digest(mac, self._mac(payload)):
            raise RpcError(INVALID_PARAMS, "requestState was changed")
        ticket, expires, digest = orjson.loads(payload)
        if digest != _digest(principal, params):
            raise RpcError(INVALID_PARAMS, "requestState belongs to another request")
        if time.time() > expires:
            raise RpcError(INVALID_PARAMS, "unknown or expired requestState")
        return str(ticket)

    def _mac(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, payload, hashlib.sha256)


def finish_in_background(call: Call, keep: set["asyncio.Task[Any]"]) -> None:
    """Cancel a call nobody waits for any more and see it through."""
    call.cancel()
    keep.add(call.task)

    def done(task: "asyncio.Task[Any]") -> None:
        keep.discard(task)
        if not task.cancelled():
            task.exception()  # of no interest to anybody; asyncio would complain that nobody looked

    call.task.add_done_callback(done)


def _digest(principal: str, params: dict[str, Any]) -> str:
    """What identifies a request over its rounds: who asks for what with which arguments."""
    request = {key: params.get(key) for key in ("name", "uri", "arguments")}
    return hashlib.sha256(principal.encode() + jsonrpc.encode(request, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _missing(method: str) -> RpcError:
    capability = CLIENT_REQUESTS[method]
    return RpcError(
        MISSING_CLIENT_CAPABILITY,
        f"the server needs the client capability {capability!r}",
        {"requiredCapabilities": {capability: {}}},
    )


def _has_mode(capabilities: dict[str, Any], method: str, params: Any) -> bool:
    """Elicitation by URL and sampling with tools need more than the bare capability; `elicitation: {}` means forms."""
    declared = capabilities.get(CLIENT_REQUESTS[method])
    declared = declared if isinstance(declared, dict) else {}
    params = params if isinstance(params, dict) else {}
    if method == "elicitation/create":
        return "url" in declared if params.get("mode") == "url" else not declared or "form" in declared
    if method == "sampling/createMessage" and ("tools" in params or "toolChoice" in params):
        return "tools" in declared
    return True
