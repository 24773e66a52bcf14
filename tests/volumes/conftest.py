"""The volume and secret rooms over a real database, an engine in memory, and the real agent for a volume's content."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.accounts import Accounts, Team
from app.api import secrets, volume_content, volumes
from app.api.errors import install_error_handlers
from app.api.limits import BodyLimit
from app.database import Database
from app.engines.in_memory_engine import InMemoryEngine
from app.sandboxes.planning import control_environment
from app.secrets import Secrets
from app.vault import Vault
from app.volumes import VolumeContent, VolumePods, Volumes
from tests.agent.running_agent import CONTROL_TOKEN, RunningAgent, running_agent
from tests.in_process import Clock, clock, database
from tests.volume_room import make_volumes
from tests.waiting import BOUND_S

__all__ = ["clock", "database"]

IMAGE = "workspace:1"


class AgentDoor(httpx.AsyncBaseTransport):
    """Leads every pod's agent port to the one agent that really runs, if the pod is up and its token is shown."""

    def __init__(self, engine: InMemoryEngine, agent: RunningAgent) -> None:
        self._engine = engine
        self._url = httpx.URL(agent.url)
        self._network = httpx.AsyncHTTPTransport()
        self.requests: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        pod_id = request.url.host.removesuffix(".pod")
        pod = (await self._engine.observe()).get(pod_id)
        if pod is None or not pod.is_running or request.url.port != 49983:
            raise httpx.ConnectError("refused", request=request)
        environment = self._engine.spec_of(pod_id).containers[0].env
        if control_environment(request.headers.get("x-control-token", "")).items() <= environment.items():
            request.headers["x-control-token"] = CONTROL_TOKEN
        self.requests.append(f"{request.method} {request.url.path}")
        request.url = request.url.copy_with(host=self._url.host, port=self._url.port)
        return await self._network.handle_async_request(request)

    async def aclose(self) -> None:
        await self._network.aclose()


@dataclass(kw_only=True)
class Rooms:
    database: Database
    vault: Vault
    accounts: Accounts
    team: Team
    engine: InMemoryEngine
    pods: VolumePods
    volumes: Volumes
    content: VolumeContent
    secrets: Secrets
    door: AgentDoor


@pytest.fixture(scope="module")
def agent() -> Iterator[RunningAgent]:
    with running_agent(volume="home") as agent:
        yield agent


@pytest.fixture
async def rooms(tmp_path: Path, agent: RunningAgent, database: Database, clock: Clock) -> AsyncIterator[Rooms]:
    accounts, vault = Accounts(database), Vault(tmp_path / "encryption-key")
    engine = InMemoryEngine({IMAGE: {}}, address_of=lambda spec: f"{spec.pod_id}.pod")
    door = AgentDoor(engine, agent)
    async with httpx.AsyncClient(transport=door, timeout=BOUND_S) as http:
        pods = VolumePods(engine=engine, http=http, image=IMAGE, idle_s=0.05, sweep_s=0.01)
        yield Rooms(
            database=database,
            vault=vault,
            accounts=accounts,
            team=await accounts.create_team("test"),
            engine=engine,
            pods=pods,
            volumes=make_volumes(database, engine, pods, vault=vault, now=clock, stop_wait_s=1.0),
            content=VolumeContent(pods, http),
            secrets=Secrets(database=database, vault=vault, now=clock),
            door=door,
        )


@dataclass(frozen=True)
class _Settings:
    public_url: str = "http://gate"
    sandbox_domain: str | None = "sbx.example:8443"


@dataclass(frozen=True)
class _State:
    """What the routes under test look at, of all that the application holds."""

    accounts: Accounts
    settings: _Settings
    volumes: Volumes
    volume_content: VolumeContent
    secrets: Secrets


@asynccontextmanager
async def serving(rooms: Rooms, team: Team) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a key of the team."""
    app = FastAPI()
    app.add_middleware(BodyLimit)
    install_error_handlers(app)
    for router in (volumes.router, volume_content.router, secrets.router):
        app.include_router(router)
    state = _State(rooms.accounts, _Settings(), rooms.volumes, rooms.content, rooms.secrets)
    app.state.parts = state
    key = await rooms.accounts.create_key(team, "test")
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://gate", headers={"X-API-KEY": key}, timeout=BOUND_S
    ) as client:
        yield client


@pytest.fixture
async def api(rooms: Rooms) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(rooms, rooms.team) as client:
        yield client
