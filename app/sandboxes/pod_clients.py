"""The control plane's side of the doors into a pod: agent and gateway control (docs/ARCHITECTURE.md, section 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import orjson

from app.errors import SandgateError
from app.sandboxes.models import ServerStatus

AGENT_PORT = 49983
GATEWAY_CONTROL_PORT = 50006

_POLL_S = 0.015
_CALL_TIMEOUT_S = 5.0


class PodUnreachableError(SandgateError):
    """A pod's agent or gateway does not answer, or answers with what it must not."""


def make_http_client() -> httpx.AsyncClient:
    """For plain HTTP to pods only: no TLS context is built, no proxy asked, no number of pods is too large."""
    transport = httpx.AsyncHTTPTransport(
        verify=False, limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30)
    )
    return httpx.AsyncClient(transport=transport, timeout=_CALL_TIMEOUT_S, trust_env=False)


class AgentClient:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def init(self, address: str, token: str, body: Mapping[str, Any]) -> None:
        """Wait until the agent listens, then configure it. The caller bounds the wait."""
        await _until_listening(self._http, f"http://{address}:{AGENT_PORT}/health")
        with _unreachable_mapped("agent"):
            answer = await self._http.post(
                f"http://{address}:{AGENT_PORT}/init", headers={"X-Control-Token": token}, content=orjson.dumps(body)
            )
            answer.raise_for_status()


class GatewayClient:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def configure(self, address: str, token: str, config: Mapping[str, Any]) -> list[ServerStatus]:
        """Wait until the gateway listens, then hand it its configuration. The caller bounds the wait."""
        await _until_listening(self._http, f"http://{address}:{GATEWAY_CONTROL_PORT}/status")
        return _servers(await self._call("PUT", address, "/config", token, content=orjson.dumps(config)))

    async def status(self, address: str, token: str, *, wait_s: float = 0) -> list[ServerStatus]:
        """State of each server, once none is starting or the wait (at most 120 s) is over."""
        return _servers(
            await self._call("GET", address, f"/status?wait={wait_s:g}", token, timeout=wait_s + _CALL_TIMEOUT_S)
        )

    async def requests(self, address: str, token: str, *, wait_s: float) -> list[dict[str, Any]]:
        """What `mcp-gateway` in the workspace asked for meanwhile."""
        answer = await self._call("GET", address, f"/requests?wait={wait_s:g}", token, timeout=wait_s + _CALL_TIMEOUT_S)
        return list(answer["requests"])

    async def settle(self, address: str, token: str, request_id: str, *, failure: str | None) -> None:
        body = {"ok": True} if failure is None else {"ok": False, "message": failure}
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
    ) -> dict[str, Any]:
        with _unreachable_mapped("gateway"):
            answer = await self._http.request(
                method,
                f"http://{address}:{GATEWAY_CONTROL_PORT}{path}",
                headers={"Authorization": f"Bearer {token}"},
                content=content,
                timeout=timeout,
            )
            answer.raise_for_status()
            return dict(orjson.loads(answer.content)) if answer.content else {}


@contextmanager
def _unreachable_mapped(part: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise PodUnreachableError(f"The {part} of the pod answered {error.response.status_code}.") from error
    except httpx.HTTPError as error:
        raise PodUnreachableError(f"The {part} of the pod does not answer ({type(error).__name__}).") from error


async def _until_listening(http: httpx.AsyncClient, url: str) -> None:
    # Any answer will do, 401 included: it shows that somebody listens.
    while True:
        try:
            await http.get(url, timeout=1.0)
        except httpx.TransportError:
            await asyncio.sleep(_POLL_S)
        else:
            return


def _servers(answer: Mapping[str, Any]) -> list[ServerStatus]:
    return [
        ServerStatus(
            name=server["name"],
            state=server["state"],
            message=server.get("message"),
            stderr=tuple(server.get("stderr") or ()),
        )
        for server in answer["servers"]
    ]
