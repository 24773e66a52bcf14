"""Puts routes, limits and error answers together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from app import __version__
from app.api import catalog, health, pools, sandboxes, secrets, teams, telemetry, templates, volume_content, volumes
from app.api.errors import install_error_handlers
from app.api.limits import BodyLimit


def make_api(lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]) -> FastAPI:
    """`lifespan` puts `dependencies.Parts` on `app.state.parts`."""
    api = FastAPI(
        title="Sandgate",
        version=__version__,
        summary="An AI agent's sandbox and every MCP server it needs, behind one URL and one token",
        lifespan=lifespan,
    )
    api.add_middleware(BodyLimit)
    install_error_handlers(api)
    # Telemetry first: its `/sandboxes/metrics` would otherwise be taken for a sandbox called `metrics`.
    for part in (telemetry, sandboxes, templates, volumes, volume_content, secrets, teams, catalog, pools, health):
        api.include_router(part.router)
    return api
