"""Pods without containers: the doors of agent and gateway behind an HTTP transport, as the house plan has them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from app.sandboxes.models import ServerStatus


def ready(server: str) -> ServerStatus:
    """How a server looks that is up."""
    return ServerStatus(name=server, state="ready", listed=True, digest=f"sha256:{server}")


@dataclass
class PodInMemory:
    inits: list[dict[str, Any]] = field(default_factory=list)
    configs: list[dict[str, Any]] = field(default_factory=list)
    requests: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    """To the control plane. One that has an id only takes an earlier one back."""
    unsettled: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Those that a poll has seen, by id."""
    settled: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)


class PodTransport(httpx.AsyncBaseTransport):
    """Answers for every pod by its address."""

    def __init__(self) -> None:
        self.pods: dict[str, PodInMemory] = {}
        self.failing: dict[str, list[str]] = {}
        """Servers that do not come up, with their last stderr lines."""
        self.never_ready: set[str] = set()
        self.is_silent = False
        """While set, nothing in any pod listens."""
        self.metrics: dict[str, float] = {}
        """What every agent says of its use."""
        self.configuring = asyncio.Event()
        """While cleared, gateways take their configuration and do not answer yet."""
        self.configuring.set()
        self.listing = asyncio.Event()
        """While cleared, gateways do not answer yet what a server lists."""
        self.listing.set()
        self.broken: set[str] = set()
        """Addresses of pods whose agent answers everything with 500."""

    def pod(self, address: str) -> PodInMemory:
        return self.pods.setdefault(address, PodInMemory())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.is_silent:
            raise httpx.ConnectError("refused", request=request)
        if request.url.host in self.broken:
            return httpx.Response(500)
        pod = self.pod(request.url.host)
        content = await request.aread()
        if request.url.path == "/file":
            return httpx.Response(404)  # of a volume, and no JSON
        body = orjson.loads(content or b"{}")
        match request.method, request.url.port, request.url.path:
            case "GET", 49983, "/health":
                return httpx.Response(204)
            case "POST", 49983, "/init":
                pod.inits.append({"control": request.headers["X-Control-Token"], **body})
                return httpx.Response(204)
            case "GET", 49983, "/metrics":
                return httpx.Response(200, json=self.metrics)
            case _, 50006, _ if "Authorization" not in request.headers:
                return httpx.Response(401)
            case "PUT", 50006, "/config":
                pod.configs.append({"control": request.headers["Authorization"], **body})
                await self.configuring.wait()
                return httpx.Response(200, json=self._status(pod))
            case "GET", 50006, "/status":
                return httpx.Response(200, json=self._status(pod))
            case "GET", 50006, "/lists":
                await self.listing.wait()
                server = request.url.params["server"]
                return httpx.Response(200, json={"digest": f"sha256:{server}", "tools": [{"name": f"{server}-tool"}]})
            case "GET", 50006, "/requests":
                known = set(filter(None, request.url.params["known"].split(",")))
                return httpx.Response(200, json={"requests": await self._requests(pod, known)})
            case "POST", 50006, path if path.startswith("/requests/"):
                pod.unsettled.pop(path.removeprefix("/requests/"), None)
                await pod.settled.put({"id": path.removeprefix("/requests/"), **body})
                return httpx.Response(204)
        return httpx.Response(404)

    async def _requests(self, pod: PodInMemory, known: set[str]) -> list[dict[str, Any]]:
        while pod.unsettled.keys() == known or not pod.requests.empty():
            request = await pod.requests.get()
            if request.keys() == {"id"}:
                del pod.unsettled[request["id"]]
            else:
                pod.unsettled[request["id"]] = request
        return [{"id": key} if key in known else request for key, request in pod.unsettled.items()]

    def _status(self, pod: PodInMemory) -> dict[str, Any]:
        servers = pod.configs[-1]["servers"] if pod.configs else []
        return {"servers": [self._server(server["name"], "remembered" in server) for server in servers]}

    def _server(self, name: str, is_remembered: bool) -> dict[str, Any]:
        if name in self.failing:
            return {"name": name, "state": "failed", "message": "exited with code 3", "stderr": self.failing[name]}
        if name in self.never_ready:
            return {"name": name, "state": "starting", "stderr": [], "listed": is_remembered}
        return {"name": name, "state": "ready", "stderr": [], "listed": True, "digest": f"sha256:{name}"}
