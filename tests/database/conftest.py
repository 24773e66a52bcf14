"""One database after the other: SQLite, and a Postgres in a container."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import docker
import pytest
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from app.database import Database
from app.engines.images import image_tags
from app.ids_and_time import new_id
from app.settings import ROOT, Settings

POSTGRES = """
ARG FROM_IMAGE
FROM ${FROM_IMAGE}
RUN apt-get update && apt-get install --yes --no-install-recommends postgresql && rm -rf /var/lib/apt/lists/*
USER postgres
ENV PATH=/usr/lib/postgresql/17/bin:$PATH PGDATA=/tmp/data
RUN initdb --username=sandgate --auth=trust && echo "host all all all trust" >> $PGDATA/pg_hba.conf
CMD ["postgres", "-c", "listen_addresses=*", "-c", "fsync=off"]
"""


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """SQLAlchemy URL of a Postgres that lives as long as the tests."""
    settings = Settings()
    base = image_tags(ROOT / "sandbox_images", base_image=settings.base_image, ca_bundle=settings.ca_bundle).base
    context = tmp_path_factory.mktemp("postgres")
    (context / "Dockerfile").write_text(POSTGRES)
    client = docker.from_env()
    image, _ = client.images.build(
        path=str(context), buildargs={"FROM_IMAGE": base}, tag="sandgate-test/postgres", rm=True
    )
    # Its reaper is an image of its own, which not every machine can pull; the context manager below cleans up.
    testcontainers_config.ryuk_disabled = True
    ready = LogMessageWaitStrategy("database system is ready to accept connections").with_startup_timeout(60)
    with DockerContainer(str(image.id)).waiting_for(ready) as container:
        wrapped = container.get_wrapped_container()
        wrapped.reload()  # what it knows is from before the start, when there was no address
        network = wrapped.attrs["NetworkSettings"]["Networks"]["bridge"]
        yield f"postgresql+asyncpg://sandgate@{network['IPAddress']}/postgres"
    client.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.docker)])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'test.db'}"
    return await _new_postgres_database(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An empty, migrated database."""
    database = Database(database_url)
    try:
        await database.migrate()
        yield database
    finally:
        await database.aclose()


@pytest.fixture
async def same_database(database: Database, database_url: str) -> AsyncIterator[Database]:
    """As another process has it."""
    same = Database(database_url)
    yield same
    await same.aclose()


async def _new_postgres_database(url: str) -> str:
    name = new_id("test")
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return url.removesuffix("postgres") + name
