"""The template room on an engine in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.accounts import Accounts
from app.database import Database
from app.engines.in_memory_engine import InMemoryEngine
from app.templates import TemplateService
from tests.in_process import Clock, clock, database
from tests.template_room import building, make_template_service

__all__ = ["clock", "database"]


@pytest.fixture
def engine() -> InMemoryEngine:
    engine = InMemoryEngine({"workspace:1": {}, "foreign:1": {}, "debian:12": {}})
    engine.builds.labels["workspace:1"] = {"sandgate.image": "workspace"}
    return engine


@pytest.fixture
async def team(database: Database) -> str:
    return (await Accounts(database).create_team("red")).id


@pytest.fixture
async def other_team(database: Database) -> str:
    return (await Accounts(database).create_team("blue")).id


@pytest.fixture
async def templates(
    database: Database, engine: InMemoryEngine, tmp_path: Path, clock: Clock
) -> AsyncIterator[TemplateService]:
    service = make_template_service(database, engine, tmp_path, now=clock)
    async with building(service):
        yield service
