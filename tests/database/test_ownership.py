"""Two homes on one database would destroy each other's sandboxes, so the second one's server does not start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.database import Database, DatabaseUnusableError, claim_database
from app.main import check_start, installation_name
from app.settings import Settings


async def test_a_database_belongs_to_the_first_installation_that_claims_it(
    database: Database, same_database: Database
) -> None:
    async with asyncio.TaskGroup() as group:
        claims = [
            group.create_task(claim_database(each, name)) for each, name in ((database, "a"), (same_database, "b"))
        ]
    owner = claims[0].result()
    assert owner in ("a", "b")
    assert claims[1].result() == owner
    assert await claim_database(database, "c") == owner


async def test_the_server_of_another_home_does_not_start(database_url: str, tmp_path: Path) -> None:
    first = Settings(home=tmp_path / "first", database_url=database_url)
    second = Settings(home=tmp_path / "second", database_url=database_url)
    await check_start(first)
    with pytest.raises(DatabaseUnusableError) as refused:
        await check_start(second)
    name = installation_name(first.home)
    assert f"write {name} into {tmp_path / 'second' / 'installation'}" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    await check_start(first)

    (second.home / "installation").write_text(f"{name}\n")
    await check_start(second)


async def test_a_home_may_be_renamed(database_url: str, tmp_path: Path) -> None:
    await check_start(Settings(home=tmp_path / "before", database_url=database_url))
    (tmp_path / "before").rename(tmp_path / "after")
    await check_start(Settings(home=tmp_path / "after", database_url=database_url))
