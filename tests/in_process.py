"""The sandbox room in one process: real store, service, transitions and reconciler; engine and pods in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import httpx
import pytest

from app.accounts import Accounts
from app.catalog import Catalog
from app.catalog.importing import CatalogImporter
from app.catalog.sources import SourceStore
from app.database import Database
from app.engines.in_memory_engine import InMemoryEngine
from app.errors import NotFound
from app.packages import PackageLocks, PackageStore
from app.sandboxes.assembly import make_sandboxes
from app.sandboxes.directory import Directory
from app.sandboxes.expiry import Expiry
from app.sandboxes.journal import Journal
from app.sandboxes.models import CreateSandbox
from app.sandboxes.planning import plan_sandbox
from app.sandboxes.server_containers import STDIO_BRIDGE
from app.sandboxes.service import SandboxService
from app.sandboxes.store import Store
from app.sandboxes.tool_memory import ToolMemory
from app.sandboxes.warm_pool import PoolPlan
from app.templates import TemplateService
from app.vault import Vault
from tests.pods import PodTransport
from tests.shipped_catalog import SHIPPED_SERVERS, shipped_catalog
from tests.template_room import building, make_template_service
from tests.unit import plans
from tests.waiting import BOUND_S

IMAGES: dict[str, dict[str, bytes]] = {"workspace:1": {}, "gateway:1": {STDIO_BRIDGE: b"bridge"}}
BLUEPRINT = replace(plans.BLUEPRINT, server_start_timeout_s=1)
TURN_S = 120.0
"""On a slow machine a storm's last writer may wait for longer than the ten seconds that a caller is made to."""


class Clock:
    """Time that passes only when told to, and still gives two calls two moments."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.moment += timedelta(microseconds=1)
        return self.moment

    def advance(self, **amount: float) -> None:
        self.moment += timedelta(**amount)


@dataclass(kw_only=True)
class ControlPlane:
    """One life of a control plane; database, engine and pods outlive it."""

    service: SandboxService
    expiry: Expiry
    directory: Directory
    store: Store
    accounts: Accounts
    catalog: Catalog
    catalog_importer: CatalogImporter
    templates: TemplateService
    journal: Journal
    memory: ToolMemory
    team_id: str


class StartControlPlane(Protocol):
    def __call__(
        self,
        *,
        engine: InMemoryEngine | None = None,
        own_servers: Path | None = None,
        listen_deadline_s: float = BOUND_S,
        warm: int = 0,
        warm_template: str = "base",
        sweep_interval_s: float = 15,
        prepare_interval_s: float = 300,
        store_class: type[Store] = Store,
    ) -> AbstractAsyncContextManager[ControlPlane]:
        """On the fixture's engine, or on another one; `own_servers` holds definitions beside the shipped ones, `warm`
        is the number of pods of `warm_template` that wait."""
        ...


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """An empty one, on SQLite."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}")
    await database.migrate()
    yield database
    await database.aclose()


@pytest.fixture
def pods() -> PodTransport:
    return PodTransport()


@pytest.fixture
def engine() -> InMemoryEngine:
    return InMemoryEngine(IMAGES, address_of=lambda spec: f"{spec.pod_id}.pod")


@pytest.fixture
def start_control_plane(tmp_path: Path, clock: Clock, pods: PodTransport, engine: InMemoryEngine) -> StartControlPlane:
    shared_engine = engine

    @asynccontextmanager
    async def start(
        *,
        engine: InMemoryEngine | None = None,
        own_servers: Path | None = None,
        listen_deadline_s: float = BOUND_S,
        warm: int = 0,
        warm_template: str = "base",
        sweep_interval_s: float = 15,
        prepare_interval_s: float = 300,
        store_class: type[Store] = Store,
    ) -> AsyncIterator[ControlPlane]:
        database = Database(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}", turn_s=TURN_S)
        await database.migrate()
        accounts = Accounts(database)
        team = await accounts.default_team() or await accounts.create_team("test")
        vault = Vault(tmp_path / "encryption-key")
        store = store_class(database, vault)
        catalog = shipped_catalog() if own_servers is None else Catalog.load(SHIPPED_SERVERS, own_servers)
        directory = Directory()
        async with httpx.AsyncClient(transport=pods) as http:
            journal = Journal(database, now=clock)
            memory = ToolMemory(database, now=clock)
            templates = make_template_service(
                database,
                engine or shared_engine,
                tmp_path,
                now=clock,
                in_use=store.template_in_use,
                images_of_forks=store.fork_images,
            )

            async def plans() -> list[PoolPlan]:
                try:
                    template = await templates.resolve(team.id, warm_template)
                except NotFound:
                    return []
                plan = plan_sandbox(request(), template, catalog, BLUEPRINT)
                return [PoolPlan(template=warm_template, plan=plan, size=warm)]

            sandboxes = make_sandboxes(
                store=store,
                engine=engine or shared_engine,
                http=http,
                memory=memory,
                journal=journal,
                packages=PackageStore(
                    engine or shared_engine,
                    image=BLUEPRINT.workspace_image,
                    installer=Path("sandbox_images/installer/install_package.py"),
                    locks=PackageLocks([Path("catalog/locks")]),
                ),
                templates=templates,
                directory=directory,
                catalog=catalog,
                blueprint=BLUEPRINT,
                warm_plans=plans,
                now=clock,
                listen_deadline_s=listen_deadline_s,
                sweep_interval_s=sweep_interval_s,
                prepare_interval_s=prepare_interval_s,
            )
            ready = asyncio.Event()
            running = asyncio.create_task(sandboxes.reconciler.run(ready))
            await ready.wait()
            try:
                async with building(templates):
                    yield ControlPlane(
                        service=sandboxes.service,
                        expiry=sandboxes.expiry,
                        directory=directory,
                        store=store,
                        accounts=accounts,
                        catalog=catalog,
                        catalog_importer=CatalogImporter(catalog, SourceStore(database, vault), now=clock),
                        templates=templates,
                        journal=journal,
                        memory=memory,
                        team_id=team.id,
                    )
            finally:
                running.cancel()
                await asyncio.wait([running])
                await database.aclose()

    return start


@pytest.fixture
async def control_plane(start_control_plane: StartControlPlane) -> AsyncIterator[ControlPlane]:
    async with start_control_plane() as control_plane:
        yield control_plane


def request(**fields: object) -> CreateSandbox:
    return CreateSandbox(**{"template": "base", "timeout_s": 60, **fields})  # type: ignore[arg-type]
