"""Puts routes, limits and error answers together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from app import __version__
from app.api import catalog, health, sandboxes, templates
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
    for router in (sandboxes.router, templates.router, catalog.router, health.router):
        api.include_router(router)
    return api
