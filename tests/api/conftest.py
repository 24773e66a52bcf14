"""The API over the control plane in one process, with a client that has a valid key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.accounts import Team
from app.api.application import make_api
from app.api.dependencies import Parts, SettingsOfApi
from app.database import Database
from app.engines.in_memory_engine import InMemoryEngine
from app.sandboxes.pod_clients import AgentClient
from app.sandboxes.sandbox_logs import SandboxLogs
from app.sandboxes.telemetry import Metrics
from app.secrets import Secrets
from app.vault import Vault
from app.volumes import VolumeContent, VolumePods
from tests.in_process import Clock, ControlPlane, clock, control_plane, engine, pods, start_control_plane
from tests.pods import PodTransport
from tests.volume_room import make_volumes

__all__ = ["clock", "control_plane", "engine", "pods", "start_control_plane"]


@pytest.fixture
async def app(
    control_plane: ControlPlane, engine: InMemoryEngine, pods: PodTransport, clock: Clock, tmp_path: Path
) -> AsyncIterator[FastAPI]:
    """The whole API."""
    database, vault = Database(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}"), Vault(tmp_path / "encryption-key")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with httpx.AsyncClient(transport=pods) as http:
            volume_pods = VolumePods(engine=engine, http=http, image="workspace:1")
            app.state.parts = Parts(
                accounts=control_plane.accounts,
                service=control_plane.service,
                catalog=control_plane.catalog,
                catalog_importer=control_plane.catalog_importer,
                templates=control_plane.templates,
                volumes=make_volumes(database, engine, volume_pods, vault=vault, now=clock),
                volume_content=VolumeContent(volume_pods, http),
                secrets=Secrets(database=database, vault=vault, now=clock),
                metrics=Metrics(control_plane.directory, AgentClient(http), now=clock),
                logs=SandboxLogs(control_plane.journal, engine, control_plane.directory),
                settings=SettingsOfApi(public_url="http://gate.example", sandbox_domain=None, sandbox_size=(1, 512)),
            )
            yield
        await database.aclose()

    app = make_api(lifespan)
    async with lifespan(app):
        yield app


@pytest.fixture
async def api(app: FastAPI, control_plane: ControlPlane) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a valid key."""
    key = await control_plane.accounts.create_key(Team(control_plane.team_id, "test"), "test")
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gate", headers={"X-API-KEY": key}) as client:
        yield client
