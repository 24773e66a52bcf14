"""What the store promises, on SQLite and on Postgres."""

from __future__ import annotations

import asyncio
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
from app.errors import Conflict, Unauthorized
from app.ids_and_time import new_pod_id, new_sandbox_id
from app.sandboxes.models import (
    Lifecycle,
    McpOptions,
    MountedVolume,
    PauseMode,
    PodRecord,
    PodSecrets,
    Sandbox,
    SandboxSecrets,
    Status,
)
from app.sandboxes.network_rules import NetworkRules
from app.sandboxes.store import KeyUse, Store
from app.secrets.at_rest import renew_stored_secrets
from app.templates import ResolvedTemplate
from app.vault import Vault

TEMPLATE = ResolvedTemplate(
    template_id="t1",
    build_id="b1",
    name="mine:default",
    image="template:1",
    has_gateway=True,
    user="root",
    workdir=None,
    envs={"KEY": "template-sesame"},
    start_command=None,
    ready_command=None,
    cpus=1,
    memory_mib=None,
    kind="template",
)
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
        template=TEMPLATE,
        status=Status.STARTING,
        mounts=(MountedVolume(volume_id="v1", name="data", path="/data"),),
        target=Status.RUNNING,
        created_at=NOW,
        started_at=NOW,
        ends_at=NOW + MINUTE,
        metadata={"a b": "c&d"},
        timeout_s=60,
        lifecycle=Lifecycle(on_timeout="pause", pause_mode=PauseMode.FILESYSTEM),
        pause_mode=None,
        network=NetworkRules(allow_out=("10.0.0.0/8", "*.example.com"), deny_out=("0.0.0.0/0",)),
        has_egress=True,
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


def make_pod(sandbox: Sandbox | None, *, recipe: str | None = None) -> PodRecord:
    secrets = PodSecrets(agent_token="agent-sesame", gateway_token="gateway-sesame", stdio_token="stdio-sesame")
    return PodRecord(id=new_pod_id(), sandbox_id=sandbox.id if sandbox else None, secrets=secrets, recipe=recipe)


async def insert_running(store: Store, team_id: str, *, ends_at: datetime = NOW + MINUTE) -> tuple[Sandbox, PodRecord]:
    sandbox = make_sandbox(team_id)
    pod = make_pod(sandbox)
    await store.insert(sandbox, pod)
    assert await store.mark_running(sandbox.id, started_at=NOW, ends_at=ends_at, pod_id=pod.id, address="10.0.0.2")
    return replace(sandbox, status=Status.RUNNING, ends_at=ends_at), replace(pod, address="10.0.0.2")


async def test_a_sandbox_comes_back_exactly_as_it_was_recorded(store: Store, team_id: str) -> None:
    sandbox, pod = await insert_running(store, team_id)
    assert await store.find(sandbox.id, team_id=team_id) == sandbox
    assert await store.alive() == [sandbox]
    assert await store.pod_of(sandbox.id) == pod
    assert await store.pods() == {pod.id: pod}


async def test_a_sandbox_is_not_found_by_another_team(store: Store, database: Database, team_id: str) -> None:
    sandbox, _ = await insert_running(store, team_id)
    other = await Accounts(database).create_team("other")
    assert await store.find(sandbox.id, team_id=other.id) is None
    assert not await store.ask_to_stop(sandbox.id, team_id=other.id)
    assert await store.find(sandbox.id) == sandbox


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
    assert not await store.mark_running(sandbox.id, started_at=NOW, ends_at=NOW, pod_id="p1", address="10.0.0.2")
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
    await store.abandon_moves()
    assert await store.to_stop() == [starting.id]
    assert await store.alive() == [running]


async def test_expiry_is_by_the_moment_given(store: Store, team_id: str) -> None:
    soon, _ = await insert_running(store, team_id, ends_at=NOW + MINUTE)
    later, _ = await insert_running(store, team_id, ends_at=NOW + 5 * MINUTE)
    assert await store.expired(NOW) == []
    assert await store.expired(NOW + MINUTE) == [soon.id]
    assert await store.next_expiry() == NOW + MINUTE
    assert await store.set_timeout(soon.id, ends_at=NOW + 9 * MINUTE, timeout_s=540)
    assert await store.next_expiry() == later.ends_at


async def test_only_what_is_over_ends_by_its_time(store: Store, team_id: str) -> None:
    sandbox, _ = await insert_running(store, team_id, ends_at=NOW + MINUTE)
    assert not await store.ask_to_stop_if_over(sandbox.id, NOW)
    assert not await store.ask_to_pause(sandbox.id, PauseMode.MEMORY, if_over_at=NOW)
    assert await store.ask_to_stop_if_over(sandbox.id, NOW + MINUTE)
    assert not await store.set_timeout(sandbox.id, ends_at=NOW + 9 * MINUTE, timeout_s=540)


async def test_only_what_runs_is_extended_and_never_to_an_earlier_end(store: Store, team_id: str) -> None:
    sandbox, _ = await insert_running(store, team_id, ends_at=NOW + 5 * MINUTE)
    assert await store.extend(sandbox.id, ends_at=NOW + 9 * MINUTE, timeout_s=540)
    assert not await store.extend(sandbox.id, ends_at=NOW + 6 * MINUTE, timeout_s=360)
    assert await store.next_expiry() == NOW + 9 * MINUTE
    assert await store.ask_to_pause(sandbox.id, PauseMode.MEMORY)
    assert not await store.extend(sandbox.id, ends_at=NOW + 10 * MINUTE, timeout_s=600)


async def test_only_what_is_over_is_paused_by_its_time(store: Store, team_id: str) -> None:
    sandbox, _ = await insert_running(store, team_id, ends_at=NOW + MINUTE)
    assert await store.ask_to_pause(sandbox.id, PauseMode.MEMORY, if_over_at=NOW + MINUTE)
    assert not await store.ask_to_stop_if_over(sandbox.id, NOW + MINUTE)


async def test_a_pause_and_a_resume_are_two_steps_each(store: Store, team_id: str) -> None:
    sandbox, pod = await insert_running(store, team_id)
    assert await store.ask_to_pause(sandbox.id, PauseMode.MEMORY)
    assert not await store.ask_to_pause(sandbox.id, PauseMode.MEMORY)
    assert await store.mark_paused(sandbox.id, PauseMode.MEMORY)
    paused = replace(sandbox, status=Status.PAUSED, target=Status.PAUSED, pause_mode=PauseMode.MEMORY)
    assert await store.alive() == [paused]
    assert await store.expired(NOW + 9 * MINUTE) == []
    assert await store.next_expiry() is None
    assert await store.ask_to_run(sandbox.id, timeout_s=90)
    assert await store.mark_running(sandbox.id, started_at=NOW, ends_at=NOW + MINUTE, pod_id=pod.id, address="10.0.0.3")
    assert await store.find(sandbox.id) == replace(sandbox, ends_at=NOW + MINUTE, timeout_s=90)
    assert await store.pod_of(sandbox.id) == replace(pod, address="10.0.0.3")


async def test_a_resume_that_nobody_carries_on_is_taken_back(store: Store, team_id: str) -> None:
    sandbox, _ = await insert_running(store, team_id)
    await store.ask_to_pause(sandbox.id, PauseMode.FILESYSTEM)
    await store.mark_paused(sandbox.id, PauseMode.FILESYSTEM)
    await store.ask_to_run(sandbox.id)
    await store.abandon_moves()
    (paused,) = await store.alive()
    assert (paused.status, paused.target) == (Status.PAUSED, Status.PAUSED)


async def test_a_pause_that_nobody_carries_on_stays_asked_for(store: Store, team_id: str) -> None:
    sandbox, _ = await insert_running(store, team_id)
    await store.ask_to_pause(sandbox.id, PauseMode.FILESYSTEM)
    await store.abandon_moves()
    (pausing,) = await store.alive()
    assert (pausing.status, pausing.target) == (Status.RUNNING, Status.PAUSED)


async def test_a_warm_pod_is_claimed_once_and_the_longest_waiting_first(store: Store, team_id: str) -> None:
    older, newer, other, unready = (make_pod(None, recipe=recipe) for recipe in ("r1", "r1", "r2", "r1"))
    for minute, pod in enumerate((older, newer, other)):
        await store.insert_warm(pod, NOW)
        await store.mark_warm(pod.id, address="10.0.0.9", now=NOW + minute * MINUTE)
    await store.insert_warm(unready, NOW)
    claimed = []
    for _ in range(3):
        sandbox = make_sandbox(team_id)
        claimed.append(await store.insert(sandbox, make_pod(sandbox, recipe="r1")))
    assert [pod.id for pod in claimed[:2]] == [older.id, newer.id]
    assert claimed[0].address == "10.0.0.9"
    assert claimed[2].address is None
    assert claimed[2].id not in (unready.id, other.id)


async def test_many_claims_at_once_get_different_pods(store: Store, team_id: str) -> None:
    warm = [make_pod(None, recipe="r1") for _ in range(5)]
    for pod in warm:
        await store.insert_warm(pod, NOW)
        await store.mark_warm(pod.id, address="10.0.0.9", now=NOW)

    async def claim() -> PodRecord:
        sandbox = make_sandbox(team_id)
        return await store.insert(sandbox, make_pod(sandbox, recipe="r1"))

    async with asyncio.TaskGroup() as group:
        claims = [group.create_task(claim()) for _ in range(12)]
    claimed = [task.result().id for task in claims]
    assert len(set(claimed)) == 12
    assert {pod.id for pod in warm} < set(claimed)


async def test_two_control_planes_claim_and_withdraw_from_one_pool_without_sharing_a_pod(
    store: Store, same_database: Database, vault: Vault, team_id: str
) -> None:
    warm = [make_pod(None, recipe="r1") for _ in range(10)]
    for pod in warm:
        await store.insert_warm(pod, NOW)
        await store.mark_warm(pod.id, address="10.0.0.9", now=NOW)
    stores = (store, Store(same_database, vault))

    async def claim(claiming: Store) -> str:
        sandbox = make_sandbox(team_id)
        return (await claiming.insert(sandbox, make_pod(sandbox, recipe="r1"))).id

    async def withdraw(withdrawing: Store, pod_id: str) -> str | None:
        return pod_id if await withdrawing.withdraw(pod_id) else None

    async with asyncio.TaskGroup() as group:
        claims = [group.create_task(claim(stores[number % 2])) for number in range(14)]
        withdrawals = [group.create_task(withdraw(stores[number % 2], pod.id)) for number, pod in enumerate(warm[:4])]
    claimed = [task.result() for task in claims]
    withdrawn = {task.result() for task in withdrawals} - {None}
    assert len(set(claimed)) == 14
    assert not withdrawn & set(claimed)
    assert {pod.id for pod in warm} <= withdrawn | set(claimed)


async def test_a_withdrawn_pod_cannot_be_claimed_and_a_claimed_one_not_withdrawn(store: Store, team_id: str) -> None:
    pods_to_wait = [make_pod(None, recipe="r1") for _ in range(2)]
    for pod in pods_to_wait:
        await store.insert_warm(pod, NOW)
        await store.mark_warm(pod.id, address="10.0.0.9", now=NOW)
    assert await store.withdraw(pods_to_wait[0].id)
    sandbox = make_sandbox(team_id)
    assert (await store.insert(sandbox, make_pod(sandbox, recipe="r1"))).id == pods_to_wait[1].id
    assert not await store.withdraw(pods_to_wait[1].id)
    for pod in pods_to_wait:
        await store.forget_pod(pod.id)
    assert list(await store.pods()) == [pods_to_wait[1].id]


async def test_an_idempotency_key_makes_one_sandbox_of_its_team(store: Store, database: Database, team_id: str) -> None:
    first = make_sandbox(team_id)
    await store.insert(first, make_pod(first), idempotency_key="k", request_digest="d")
    again = make_sandbox(team_id)
    with pytest.raises(Conflict, match="'k'"):
        await store.insert(again, make_pod(again), idempotency_key="k", request_digest="d")
    assert await store.find_by_key(team_id, "k") == KeyUse(first.id, "d")
    of_another = make_sandbox((await Accounts(database).create_team("other")).id)
    await store.insert(of_another, make_pod(of_another), idempotency_key="k", request_digest="d")


async def test_the_key_of_a_create_that_failed_is_free_again(store: Store, team_id: str) -> None:
    first = make_sandbox(team_id)
    await store.insert(first, make_pod(first), idempotency_key="k", request_digest="d")
    await store.ask_to_stop(first.id, failure="no luck")
    assert await store.find_by_key(team_id, "k") is None


async def test_a_forks_image_goes_with_the_last_sandbox_made_from_it(store: Store, team_id: str) -> None:
    one, two, plain = make_sandbox(team_id), make_sandbox(team_id), make_sandbox(team_id)
    for sandbox in (one, two):
        await store.insert(sandbox, make_pod(sandbox), fork_image="sandgate/fork:1")
    await store.insert(plain, make_pod(plain))
    await store.mark_stopped(plain.id, NOW)
    await store.mark_stopped(one.id, NOW)
    assert await store.unused_fork_images() == []
    await store.mark_stopped(two.id, NOW)
    assert await store.unused_fork_images() == ["sandgate/fork:1"]
    await store.forget_fork_image("sandgate/fork:1")
    assert await store.unused_fork_images() == []


async def test_rotation_keeps_secrets_readable_and_drops_the_old_key(
    store: Store, database: Database, vault: Vault, team_id: str, tmp_path: Path
) -> None:
    sandbox, pod = await insert_running(store, team_id)
    old_key = (tmp_path / "encryption-key").read_bytes()
    vault.add_key()
    assert await renew_stored_secrets(database, vault) == 2
    vault.forget_old_keys()
    assert old_key.strip() not in (tmp_path / "encryption-key").read_bytes()
    fresh = Store(database, Vault(tmp_path / "encryption-key"))
    assert await fresh.alive() == [sandbox]
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
