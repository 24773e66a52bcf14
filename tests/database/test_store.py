"""What the store promises, on SQLite and on Postgres."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select, text

from app.accounts import Accounts
from app.database import Database
from app.database.tables import metadata, pods, sandboxes
from app.errors import Unauthorized
from app.ids_and_time import new_pod_id, new_sandbox_id
from app.sandboxes.models import McpOptions, PodRecord, PodSecrets, Sandbox, SandboxSecrets, Status
from app.sandboxes.store import Store
from app.vault import Vault

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "encryption-key")


@pytest.fixture
def store(database: Database, vault: Vault) -> Store:
    return Store(database, vault)


@pytest.fixture
async def team_id(database: Database) -> str:
    return (await Accounts(database).create_team("test")).id


def make_sandbox(team_id: str) -> Sandbox:
    return Sandbox(
        id=new_sandbox_id(),
        team_id=team_id,
        template="mcp-gateway",
        status=Status.STARTING,
        target=Status.RUNNING,
        created_at=NOW,
        started_at=NOW,
        ends_at=NOW + MINUTE,
        metadata={"a b": "c&d"},
        egress=None,
        has_gateway=True,
        cpus=2,
        memory_mib=512,
        secrets=SandboxSecrets(
            access_token="access-sesame",
            envs={"KEY": "env-sesame"},
            mcp={"docs": {"token": "mcp-sesame"}},
            mcp_options=McpOptions(naming="always", placement={"docs": "gateway"}),
            mcp_token="bearer-sesame",
        ),
    )


def make_pod(sandbox: Sandbox) -> PodRecord:
    secrets = PodSecrets(agent_token="agent-sesame", gateway_token="gateway-sesame", stdio_token="stdio-sesame")
    return PodRecord(id=new_pod_id(), sandbox_id=sandbox.id, secrets=secrets)


async def insert_running(store: Store, team_id: str, *, ends_at: datetime = NOW + MINUTE) -> tuple[Sandbox, PodRecord]:
    sandbox = make_sandbox(team_id)
    pod = make_pod(sandbox)
    await store.insert(sandbox, pod)
    assert await store.mark_running(sandbox.id, started_at=NOW, ends_at=ends_at)
    return replace(sandbox, status=Status.RUNNING, ends_at=ends_at), pod


async def test_a_sandbox_comes_back_exactly_as_it_was_recorded(store: Store, team_id: str) -> None:
    sandbox, pod = await insert_running(store, team_id)
    assert await store.find(sandbox.id, team_id=team_id) == sandbox
    assert await store.running() == [sandbox]
    assert await store.pod_of(sandbox.id) == pod
    assert await store.pods() == {pod.id: pod}


async def test_a_sandbox_is_not_found_by_another_team(store: Store, database: Database, team_id: str) -> None:
    sandbox, _ = await insert_running(store, team_id)
    other = await Accounts(database).create_team("other")
    assert await store.find(sandbox.id, team_id=other.id) is None
    assert not await store.ask_to_stop(sandbox.id, team_id=other.id)
    assert await store.running(team_id=other.id) == []


async def test_no_secret_is_stored_in_clear(store: Store, database: Database, team_id: str) -> None:
    await insert_running(store, team_id)
    async with database.transaction() as connection:
        rows = [*await connection.execute(select(sandboxes)), *await connection.execute(select(pods))]
    assert "sesame" not in repr(rows)
    assert len(rows) == 2


async def test_a_sandbox_told_to_stop_cannot_become_running(store: Store, team_id: str) -> None:
    sandbox = make_sandbox(team_id)
    await store.insert(sandbox, make_pod(sandbox))
    assert await store.ask_to_stop(sandbox.id)
    assert not await store.mark_running(sandbox.id, started_at=NOW, ends_at=NOW)
    assert await store.to_stop() == [sandbox.id]


async def test_only_the_first_request_to_stop_counts(store: Store, team_id: str) -> None:
    sandbox, _ = await insert_running(store, team_id)
    assert await store.ask_to_stop(sandbox.id, team_id=team_id)
    assert not await store.ask_to_stop(sandbox.id, team_id=team_id)
    assert await store.find(sandbox.id, team_id=team_id) is None


async def test_a_stopped_sandbox_keeps_no_secret_and_no_pod(store: Store, database: Database, team_id: str) -> None:
    sandbox, _ = await insert_running(store, team_id)
    await store.ask_to_stop(sandbox.id)
    for _ in range(2):
        await store.mark_stopped(sandbox.id, NOW)
    assert await store.pods() == {}
    assert await store.to_stop() == []
    async with database.transaction() as connection:
        assert (await connection.execute(select(sandboxes.c.secrets_encrypted))).scalar_one() is None


async def test_sandboxes_stopped_long_ago_are_forgotten(store: Store, database: Database, team_id: str) -> None:
    old, _ = await insert_running(store, team_id)
    await store.mark_stopped(old.id, NOW)
    new, _ = await insert_running(store, team_id)
    await store.mark_stopped(new.id, NOW + timedelta(days=8))
    async with database.transaction() as connection:
        assert list((await connection.execute(select(sandboxes.c.id))).scalars()) == [new.id]


async def test_what_was_starting_is_abandoned_and_what_runs_is_not(store: Store, team_id: str) -> None:
    running, _ = await insert_running(store, team_id)
    starting = make_sandbox(team_id)
    await store.insert(starting, make_pod(starting))
    await store.abandon_starting()
    assert await store.to_stop() == [starting.id]
    assert await store.running() == [running]


async def test_expiry_is_by_the_moment_given(store: Store, team_id: str) -> None:
    soon, _ = await insert_running(store, team_id, ends_at=NOW + MINUTE)
    later, _ = await insert_running(store, team_id, ends_at=NOW + 5 * MINUTE)
    assert await store.expired(NOW) == []
    assert await store.expired(NOW + MINUTE) == [soon.id]
    assert await store.next_expiry() == NOW + MINUTE
    await store.set_ends_at(soon.id, NOW + 9 * MINUTE)
    assert await store.next_expiry() == later.ends_at


async def test_rotation_keeps_secrets_readable_and_drops_the_old_key(
    store: Store, database: Database, vault: Vault, team_id: str, tmp_path: Path
) -> None:
    sandbox, pod = await insert_running(store, team_id)
    old_key = (tmp_path / "encryption-key").read_bytes()
    vault.add_key()
    assert await store.renew_secrets() == 2
    vault.forget_old_keys()
    assert old_key.strip() not in (tmp_path / "encryption-key").read_bytes()
    fresh = Store(database, Vault(tmp_path / "encryption-key"))
    assert await fresh.running() == [sandbox]
    assert await fresh.pods() == {pod.id: pod}


async def test_migrating_twice_changes_nothing(database: Database) -> None:
    await database.migrate()
    async with database.transaction() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM alembic_version"))).scalar_one() == 1


async def test_migrations_lead_to_the_tables_the_code_knows(database: Database) -> None:
    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with database.transaction() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_key_opens_its_team_until_it_is_deleted(database: Database) -> None:
    accounts = Accounts(database)
    team = await accounts.create_team("test")
    key = await accounts.create_key(team, "laptop")
    assert await accounts.authenticate(key) == team
    (listed,) = await accounts.list_keys()
    assert listed.hint == key[-4:]
    assert await accounts.delete_key(listed.id)
    with pytest.raises(Unauthorized):
        await accounts.authenticate(key)


@pytest.mark.parametrize("key", [None, "", "nonsense", "e2b_" + "0" * 40, "e2b_" + "0" * 40 + "\n"])
async def test_other_keys_open_nothing(database: Database, key: str | None) -> None:
    with pytest.raises(Unauthorized):
        await Accounts(database).authenticate(key)
