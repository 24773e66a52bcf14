"""The control plane's side of the doors into a pod: agent and gateway control (docs/ARCHITECTURE.md, section 6)."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from app.errors import SandgateError
from app.sandboxes.models import ServerStatus
from app.sandboxes.pod_http import CALL_TIMEOUT_S, KNOCK, MIB, POLL_S, UnacceptableAnswerError, at_most
from app.sandboxes.server_lists import LARGEST, Lists

AGENT_PORT = 49983
GATEWAY_CONTROL_PORT = 50006

_ENVELOPE_HEAD = 5
_END_OF_STREAM = 2
_MOST_ENVELOPE = MIB
"""Bytes of one event of a command; the agent's own have a few ten thousand."""
_MOST_STATUS = 16 * MIB
"""Of a gateway's answer about all its servers, with the last lines of each that failed."""
_MOST_REQUESTS = 16 * MIB
"""Of what a gateway asks for at once. One request has 4 MiB at most."""
_STATES = frozenset({"idle", "starting", "ready", "failed"})


class PodUnreachableError(SandgateError):
    """A pod's agent or gateway does not answer, or answers with what it must not."""


class AnswerRefusedError(PodUnreachableError):
    """It does answer, and the answer is too large or encoded."""


class AgentClient:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def init(self, address: str, token: str, body: Mapping[str, Any]) -> None:
        """Configure the agent, as soon as it listens. The caller bounds the wait."""
        content = orjson.dumps(body)
        with _unreachable_mapped("agent"):
            answer = await _once_listening(
                lambda extensions: self._http.post(
                    _agent(address, "/init"),
                    headers={"X-Control-Token": token},
                    content=content,
                    extensions=extensions,
                )
            )
            answer.raise_for_status()

    async def until_listening(self, address: str) -> None:
        """The caller bounds the wait."""
        with _unreachable_mapped("agent"):
            await _once_listening(
                lambda extensions: self._http.get(_agent(address, "/health"), timeout=1.0, extensions=extensions)
            )

    async def is_healthy(self, address: str) -> bool:
        """Whether the agent answers within 5 s."""
        try:
            with _unreachable_mapped("agent"):
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    return (await self._http.get(_agent(address, "/health"))).is_success
        except PodUnreachableError:
            return False

    async def usage(self, address: str, token: str) -> Any:
        """What the workspace uses of what it has: the JSON that the agent's `/metrics` answers, whatever it is.

        `token` is the sandbox's access token. The caller bounds the wait.
        """
        with _unreachable_mapped("agent"):
            answer = await self._http.get(_agent(address, "/metrics"), headers={"X-Access-Token": token})
            answer.raise_for_status()
            return orjson.loads(answer.content)

    async def start_command(
        self, address: str, token: str, command: str, *, user: str | None, cwd: str | None
    ) -> int | None:
        """Begin a command in a login shell of the workspace; gives its pid, and leaves it running.

        `token` is the sandbox's access token; `user` and `cwd` None stand for the agent's defaults.
        """
        with _unreachable_mapped("agent"):
            async for event in self._events(address, token, command, user=user, cwd=cwd):
                if "start" in event:
                    return int(event["start"]["pid"])
        return None

    async def run_command(self, address: str, token: str, command: str, *, user: str | None, cwd: str | None) -> int:
        """Run a command as `start_command` does and wait for its end; gives its exit code, -1 for a signal."""
        with _unreachable_mapped("agent"):
            async for event in self._events(address, token, command, user=user, cwd=cwd):
                if "end" in event:
                    return int(event["end"].get("exitCode", 0))
        raise PodUnreachableError("The agent of the pod ended a command's stream without its end.")

    async def _events(
        self, address: str, token: str, command: str, *, user: str | None, cwd: str | None
    ) -> AsyncIterator[dict[str, Any]]:
        """Events of a `process.Process/Start`, in Connect's JSON envelopes (connectrpc.com/docs/protocol).

        For `_unreachable_mapped`, with what is made of them.
        """
        process: dict[str, Any] = {"cmd": "/bin/bash", "args": ["-l", "-c", command]}
        if cwd is not None:
            process["cwd"] = cwd
        message = orjson.dumps({"process": process, "stdin": False})
        headers = {"Content-Type": "application/connect+json", "X-Access-Token": token}
        if user is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:".encode()).decode()
        async with self._http.stream(
            "POST",
            _agent(address, "/process.Process/Start"),
            headers=headers,
            content=b"\0" + len(message).to_bytes(4) + message,
            timeout=httpx.Timeout(CALL_TIMEOUT_S, read=None),
            extensions=at_most(None),
        ) as answer:
            answer.raise_for_status()
            buffer = bytearray()
            async for chunk in answer.aiter_bytes():
                buffer += chunk
                while len(buffer) >= _ENVELOPE_HEAD:
                    length = int.from_bytes(buffer[1:_ENVELOPE_HEAD])
                    if length > _MOST_ENVELOPE:
                        raise UnacceptableAnswerError(f"an event of {length} bytes")
                    end = _ENVELOPE_HEAD + length
                    if len(buffer) < end:
                        break
                    flags, payload = buffer[0], orjson.loads(bytes(buffer[_ENVELOPE_HEAD:end]))
                    del buffer[:end]
                    if flags & _END_OF_STREAM:
                        if "error" in payload:
                            raise PodUnreachableError(f"The agent refused a command: {payload['error']['message']}")
                        return
                    yield payload["event"]


class GatewayClient:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def configure(self, address: str, token: str, config: Mapping[str, Any]) -> list[ServerStatus]:
        """Hand the gateway its configuration, as soon as it listens. The caller bounds the wait."""
        content = orjson.dumps(config)
        with _unreachable_mapped("gateway"):
            return _servers(
                await self._call(
                    "PUT", address, "/config", token, content=content, most=_MOST_STATUS, until_listening=True
                )
            )

    async def until_listening(self, address: str) -> None:
        """The caller bounds the wait."""
        with _unreachable_mapped("gateway"):
            # Any answer will do, 401 included: it shows that somebody listens.
            await _once_listening(
                lambda extensions: self._http.get(_gateway(address, "/status"), timeout=1.0, extensions=extensions)
            )

    async def is_listening(self, address: str) -> bool:
        """Whether anything is answered within 5 s."""
        try:
            with _unreachable_mapped("gateway"):
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    return not (await self._http.get(_gateway(address, "/status"))).is_server_error
        except PodUnreachableError:
            return False

    async def status(
        self, address: str, token: str, *, wait_s: float = 0, until_listed: bool = False
    ) -> list[ServerStatus]:
        """State of each server, once none is starting or the wait (at most 120 s) is over.

        With `until_listed`, a server that is listed from memory is not waited for.
        """
        path = f"/status?wait={wait_s:g}" + ("&until=listed" if until_listed else "")
        with _unreachable_mapped("gateway"):
            return _servers(
                await self._call("GET", address, path, token, most=_MOST_STATUS, timeout=wait_s + CALL_TIMEOUT_S)
            )

    async def lists(self, address: str, token: str, server: str, *, partial: bool = False) -> Lists:
        """What a ready server listed itself. With `partial`, lists that it failed to answer for are empty.

        Raises: PodUnreachableError, of these AnswerRefusedError for lists that are larger than `LARGEST`.
        """
        path = f"/lists?server={quote(server, safe='')}{'&partial=1' if partial else ''}"
        with _unreachable_mapped("gateway"):
            answer = await self._call("GET", address, path, token, most=LARGEST)
            return Lists(str(answer["digest"]), orjson.dumps(answer))

    async def requests(
        self, address: str, token: str, *, known: Collection[str], wait_s: float
    ) -> list[dict[str, Any]]:
        """What the control plane is asked for and has not settled yet, those that are `known` by their id only.

        At once if it is something else than what is known, else after the wait.
        """
        path = f"/requests?wait={wait_s:g}&known={quote(','.join(known), safe=',')}"
        with _unreachable_mapped("gateway"):
            answer = await self._call("GET", address, path, token, most=_MOST_REQUESTS, timeout=wait_s + CALL_TIMEOUT_S)
            return [{**request, "id": str(request["id"])} for request in answer["requests"]]

    async def settle(
        self, address: str, token: str, request_id: str, *, failure: str | None, outcome: Mapping[str, Any] | None
    ) -> None:
        """Say what came of a request. Raises: PodUnreachableError, also if nobody waits for it any more."""
        body: dict[str, Any] = {"ok": failure is None}
        if failure is not None:
            body["message"] = failure
        if outcome is not None:
            body["outcome"] = outcome
        path = f"/requests/{quote(request_id, safe='')}"
        with _unreachable_mapped("gateway"):
            await self._call("POST", address, path, token, content=orjson.dumps(body))

    async def _call(
        self,
        method: str,
        address: str,
        path: str,
        token: str,
        *,
        content: bytes | None = None,
        most: int | None = None,
        timeout: float = CALL_TIMEOUT_S,
        until_listening: bool = False,
    ) -> dict[str, Any]:
        """What it answers, in `most` bytes if the usual bound is too small. For `_unreachable_mapped`."""
        size = {} if most is None else at_most(most)

        def ask(extensions: dict[str, Any]) -> Awaitable[httpx.Response]:
            headers = {"Authorization": f"Bearer {token}"}
            return self._http.request(
                method,
                _gateway(address, path),
                headers=headers,
                content=content,
                timeout=timeout,
                extensions={**extensions, **size},
            )

        if until_listening:
            answer = await _once_listening(ask)
        else:
            # The client's own time-outs are those of single reads, of which there may be many.
            async with asyncio.timeout(timeout + CALL_TIMEOUT_S):
                answer = await ask({})
        answer.raise_for_status()
        return dict(orjson.loads(answer.content)) if answer.content else {}


def _agent(address: str, path: str) -> str:
    return f"http://{address}:{AGENT_PORT}{path}"


def _gateway(address: str, path: str) -> str:
    return f"http://{address}:{GATEWAY_CONTROL_PORT}{path}"


@contextmanager
def _unreachable_mapped(part: str) -> Iterator[None]:
    """For a call and what is made of its answer, which may be anything."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise PodUnreachableError(f"The {part} of the pod answered {error.response.status_code}.") from error
    except UnacceptableAnswerError as error:
        raise AnswerRefusedError(f"The {part} of the pod answered with {error}.") from error
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        raise PodUnreachableError(f"The {part} of the pod does not answer ({type(error).__name__}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PodUnreachableError(f"The {part} of the pod answered with something that it must not.") from error


async def _once_listening(ask: Callable[[dict[str, Any]], Awaitable[httpx.Response]]) -> httpx.Response:
    """Ask until somebody listens there. For calls that may be repeated, with the extensions of a request.

    A pod that waits warm answers the first time, without a knock.
    """
    extensions = {KNOCK: False}
    while True:
        try:
            return await ask(extensions)
        except httpx.TransportError:
            extensions = {KNOCK: True}
            await asyncio.sleep(POLL_S)


def _servers(answer: Mapping[str, Any]) -> list[ServerStatus]:
    return [_server(told) for told in answer["servers"]]


def _server(told: Mapping[str, Any]) -> ServerStatus:
    if told["state"] not in _STATES:
        raise ValueError(told["state"])
    return ServerStatus(
        name=told["name"],
        state=told["state"],
        message=told.get("message"),
        stderr=tuple(told.get("stderr") or ()),
        listed=told.get("listed", False),
        digest=told.get("digest"),
    )
