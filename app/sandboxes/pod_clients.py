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
from app.sandboxes.server_lists import Lists

AGENT_PORT = 49983
GATEWAY_CONTROL_PORT = 50006

_POLL_S = 0.005
_CONNECT_S = 0.05
"""What is sent to a pod in the first moments of its network may be lost, and the kernel sends it again after 1 s."""
_KNOCK = "sandgate.knock"
"""Extension of a request that waits until somebody listens: whether to knock before it is sent."""
_POOLS = 64
"""That pods are spread over: for each request a pool looks at all its connections, and every gateway keeps one open."""
_CALL_TIMEOUT_S = 5.0
_ENVELOPE_HEAD = 5
_END_OF_STREAM = 2


class PodUnreachableError(SandgateError):
    """A pod's agent or gateway does not answer, or answers with what it must not."""


class _Transport(httpx.AsyncBaseTransport):
    """To any number of pods. Waits for somebody to listen where a request asks for that, at a tenth of what requests in
    vain would cost."""

    def __init__(self) -> None:
        # For plain HTTP, but each pool would build its own.
        context = httpx.create_ssl_context(verify=False)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=9)
        self._pools = [httpx.AsyncHTTPTransport(verify=context, limits=limits) for _ in range(_POOLS)]

    async def aclose(self) -> None:
        for pool in self._pools:
            await pool.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        match request.extensions.get(_KNOCK):
            case True:
                await _until_accepted(request.url.host, request.url.port or 80)
            case False:
                request.extensions["timeout"] = {**request.extensions["timeout"], "connect": _CONNECT_S}
        return await self._pools[hash(request.url.host) % _POOLS].handle_async_request(request)


async def _until_accepted(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            async with asyncio.timeout(_CONNECT_S):
                connection, _ = await loop.create_connection(asyncio.Protocol, host, port)
        except OSError:  # a time-out is one
            await asyncio.sleep(_POLL_S)
        else:
            connection.close()
            return


def make_http_client() -> httpx.AsyncClient:
    """For plain HTTP to pods only: no certificates are loaded, no proxy asked, no number of pods is too large."""
    return httpx.AsyncClient(transport=_Transport(), timeout=_CALL_TIMEOUT_S, trust_env=False)


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
            return (await self._http.get(_agent(address, "/health"))).is_success
        except httpx.HTTPError:
            return False

    async def start_command(
        self, address: str, token: str, command: str, *, user: str | None, cwd: str | None
    ) -> int | None:
        """Begin a command in a login shell of the workspace; gives its pid, and leaves it running.

        `token` is the sandbox's access token; `user` and `cwd` None stand for the agent's defaults.
        """
        async for event in self._events(address, token, command, user=user, cwd=cwd):
            if "start" in event:
                return int(event["start"]["pid"])
        return None

    async def run_command(self, address: str, token: str, command: str, *, user: str | None, cwd: str | None) -> int:
        """Run a command as `start_command` does and wait for its end; gives its exit code, -1 for a signal."""
        async for event in self._events(address, token, command, user=user, cwd=cwd):
            if "end" in event:
                return int(event["end"].get("exitCode", 0))
        raise PodUnreachableError("The agent of the pod ended a command's stream without its end.")

    async def _events(
        self, address: str, token: str, command: str, *, user: str | None, cwd: str | None
    ) -> AsyncIterator[dict[str, Any]]:
        """Events of a `process.Process/Start`, in Connect's JSON envelopes (connectrpc.com/docs/protocol)."""
        process: dict[str, Any] = {"cmd": "/bin/bash", "args": ["-l", "-c", command]}
        if cwd is not None:
            process["cwd"] = cwd
        message = orjson.dumps({"process": process, "stdin": False})
        headers = {"Content-Type": "application/connect+json", "X-Access-Token": token}
        if user is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:".encode()).decode()
        with _unreachable_mapped("agent"):
            async with self._http.stream(
                "POST",
                _agent(address, "/process.Process/Start"),
                headers=headers,
                content=b"\0" + len(message).to_bytes(4) + message,
                timeout=httpx.Timeout(_CALL_TIMEOUT_S, read=None),
            ) as answer:
                answer.raise_for_status()
                buffer = bytearray()
                async for chunk in answer.aiter_bytes():
                    buffer += chunk
                    while len(buffer) >= _ENVELOPE_HEAD:
                        end = _ENVELOPE_HEAD + int.from_bytes(buffer[1:_ENVELOPE_HEAD])
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
        return _servers(await self._call("PUT", address, "/config", token, content=content, until_listening=True))

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
            return not (await self._http.get(_gateway(address, "/status"))).is_server_error
        except httpx.HTTPError:
            return False

    async def status(
        self, address: str, token: str, *, wait_s: float = 0, until_listed: bool = False
    ) -> list[ServerStatus]:
        """State of each server, once none is starting or the wait (at most 120 s) is over.

        With `until_listed`, a server that is listed from memory is not waited for.
        """
        path = f"/status?wait={wait_s:g}" + ("&until=listed" if until_listed else "")
        return _servers(await self._call("GET", address, path, token, timeout=wait_s + _CALL_TIMEOUT_S))

    async def lists(self, address: str, token: str, server: str, *, partial: bool = False) -> Lists:
        """What a ready server listed itself. With `partial`, lists that it failed to answer for are empty."""
        path = f"/lists?server={quote(server, safe='')}{'&partial=1' if partial else ''}"
        answer = await self._call("GET", address, path, token)
        return Lists(answer["digest"], orjson.dumps(answer))

    async def requests(
        self, address: str, token: str, *, known: Collection[str], wait_s: float
    ) -> list[dict[str, Any]]:
        """What the control plane is asked for and has not settled yet, those that are `known` by their id only.

        At once if it is something else than what is known, else after the wait.
        """
        path = f"/requests?wait={wait_s:g}&known={','.join(known)}"
        answer = await self._call("GET", address, path, token, timeout=wait_s + _CALL_TIMEOUT_S)
        return list(answer["requests"])

    async def settle(
        self, address: str, token: str, request_id: str, *, failure: str | None, outcome: Mapping[str, Any] | None
    ) -> None:
        """Say what came of a request. Raises: PodUnreachableError, also if nobody waits for it any more."""
        body: dict[str, Any] = {"ok": failure is None}
        if failure is not None:
            body["message"] = failure
        if outcome is not None:
            body["outcome"] = outcome
        await self._call("POST", address, f"/requests/{request_id}", token, content=orjson.dumps(body))

    async def _call(
        self,
        method: str,
        address: str,
        path: str,
        token: str,
        *,
        content: bytes | None = None,
        timeout: float = _CALL_TIMEOUT_S,
        until_listening: bool = False,
    ) -> dict[str, Any]:
        def ask(extensions: dict[str, Any]) -> Awaitable[httpx.Response]:
            headers = {"Authorization": f"Bearer {token}"}
            return self._http.request(
                method,
                _gateway(address, path),
                headers=headers,
                content=content,
                timeout=timeout,
                extensions=extensions,
            )

        with _unreachable_mapped("gateway"):
            answer = await (_once_listening(ask) if until_listening else ask({}))
            answer.raise_for_status()
            return dict(orjson.loads(answer.content)) if answer.content else {}


def _agent(address: str, path: str) -> str:
    return f"http://{address}:{AGENT_PORT}{path}"


def _gateway(address: str, path: str) -> str:
    return f"http://{address}:{GATEWAY_CONTROL_PORT}{path}"


@contextmanager
def _unreachable_mapped(part: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise PodUnreachableError(f"The {part} of the pod answered {error.response.status_code}.") from error
    except httpx.HTTPError as error:
        raise PodUnreachableError(f"The {part} of the pod does not answer ({type(error).__name__}).") from error


async def _once_listening(ask: Callable[[dict[str, Any]], Awaitable[httpx.Response]]) -> httpx.Response:
    """Ask until somebody listens there. For calls that may be repeated, with the extensions of a request.

    A pod that waits warm answers the first time, without a knock.
    """
    extensions = {_KNOCK: False}
    while True:
        try:
            return await ask(extensions)
        except httpx.TransportError:
            extensions = {_KNOCK: True}
            await asyncio.sleep(_POLL_S)


def _servers(answer: Mapping[str, Any]) -> list[ServerStatus]:
    return [
        ServerStatus(
            name=server["name"],
            state=server["state"],
            message=server.get("message"),
            stderr=tuple(server.get("stderr") or ()),
            listed=server.get("listed", False),
            digest=server.get("digest"),
        )
        for server in answer["servers"]
    ]
