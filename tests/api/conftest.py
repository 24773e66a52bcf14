"""The API over the control plane in one process, with a client that has a valid key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from app.accounts import Team
from app.api.application import make_api
from app.api.dependencies import Parts, SettingsOfApi
from tests.in_process import ControlPlane, clock, control_plane, engine, pods, start_control_plane

__all__ = ["clock", "control_plane", "engine", "pods", "start_control_plane"]


@pytest.fixture
async def api(control_plane: ControlPlane) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a valid key."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.parts = Parts(
            accounts=control_plane.accounts,
            service=control_plane.service,
            catalog=control_plane.catalog,
            catalog_importer=control_plane.catalog_importer,
            templates=control_plane.templates,
            settings=SettingsOfApi(public_url="http://gate.example", sandbox_domain=None, sandbox_size=(1, 512)),
        )
        yield

    app = make_api(lifespan)
    key = await control_plane.accounts.create_key(Team(control_plane.team_id, "test"), "test")
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        lifespan(app),
        httpx.AsyncClient(transport=transport, base_url="http://gate", headers={"X-API-KEY": key}) as client,
    ):
        yield client
