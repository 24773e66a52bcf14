"""Whose fault it is when a server cannot be tried, with pods in memory."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from app.catalog import Catalog, ServerDefinition
from app.catalog.merging import Entry
from app.engines.in_memory_engine import InMemoryEngine
from app.engines.interface import Pod, PodSpec
from app.errors import EngineError
from app.packages import PackageLocks, PackageStore
from app.sandboxes.pod_clients import AgentClient, GatewayClient
from app.settings import ROOT
from app.verification import Verifier
from tests.in_process import BLUEPRINT
from tests.pods import PodTransport

SERVER = ServerDefinition.model_validate(
    {
        "name": "acme",
        "title": "Acme",
        "type": "server",
        "package": {"registry": "npm", "name": "acme", "version": "1.0.0"},
        "command": ["acme"],
    }
)
GATEWAY_CONTROL = 50006


class RecordingEngine(InMemoryEngine):
    """Recorders listen at once."""

    async def start(self, spec: PodSpec) -> Pod:
        pod = await super().start(spec)
        self.write_log(spec.pod_id, "recorder", "ready")
        return pod


class DeafGateways(PodTransport):
    """Nothing listens where gateways are configured."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.port == GATEWAY_CONTROL:
            raise httpx.ConnectError("refused", request=request)
        return await super().handle_async_request(request)


@pytest.fixture
def engine() -> InMemoryEngine:
    return RecordingEngine({"workspace:1": {}, "gateway:1": {}}, address_of=lambda spec: f"{spec.pod_id}.pod")


def verifier_on(engine: InMemoryEngine, http: httpx.AsyncClient, *, up_s: float) -> Verifier:
    installer = ROOT / "sandbox_images" / "installer" / "install_package.py"
    return Verifier(
        engine=engine,
        agents=AgentClient(http),
        gateways=GatewayClient(http),
        http=http,
        packages=PackageStore(engine, image="workspace:1", installer=installer, locks=PackageLocks([])),
        catalog=Catalog([Entry(SERVER, "test")]),
        blueprint=BLUEPRINT,
        recorder=Path(__file__),
        up_s=up_s,
    )


async def fails_to_be_tried(engine: InMemoryEngine, transport: PodTransport, *, up_s: float) -> str:
    async with httpx.AsyncClient(transport=transport) as http:
        with pytest.raises(EngineError) as caught:
            await verifier_on(engine, http, up_s=up_s).verify(SERVER)
    assert await engine.observe() == {}
    return str(caught.value)


async def test_a_pod_that_is_not_up_in_time_says_nothing_of_the_server(engine: InMemoryEngine) -> None:
    transport = PodTransport()
    transport.is_silent = True
    assert await fails_to_be_tried(engine, transport, up_s=0.1) == (
        "MCP server 'acme' is still to be tried: its pod cannot be used. It was not up within 0.1 s."
    )


async def test_a_gateway_that_is_not_up_in_time_says_nothing_of_the_server(engine: InMemoryEngine) -> None:
    assert "was not up within 0.1 s" in await fails_to_be_tried(engine, DeafGateways(), up_s=0.1)


async def test_an_agent_that_answers_wrongly_says_nothing_of_the_server(engine: InMemoryEngine) -> None:
    class Broken(PodTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(500)

    assert "The agent of the pod answered 500." in await fails_to_be_tried(engine, Broken(), up_s=30)


async def test_a_server_that_does_not_come_up_is_told_of(engine: InMemoryEngine) -> None:
    transport = PodTransport()
    transport.failing["acme"] = ["SyntaxError"]
    async with httpx.AsyncClient(transport=transport) as http:
        found = (await verifier_on(engine, http, up_s=30).verify(SERVER)).verification
    assert (found.state, found.message) == ("broken upstream", "exited with code 3\nSyntaxError")
