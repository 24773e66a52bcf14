"""Every statement the sandbox room sends to the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import RowMapping, delete, insert, select, update

from app.database import Database
from app.database.tables import pods, sandboxes
from app.sandboxes.models import McpOptions, PodRecord, PodSecrets, Sandbox, SandboxSecrets, Status
from app.vault import Vault

_KEEP_STOPPED = timedelta(days=7)


class Store:
    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def insert(self, sandbox: Sandbox, pod: PodRecord) -> None:
        """Record a sandbox and its pod together, before anything of them is started."""
        async with self._database.transaction() as connection:
            await connection.execute(
                insert(sandboxes).values(
                    id=sandbox.id,
                    team_id=sandbox.team_id,
                    template=sandbox.template,
                    status=sandbox.status,
                    target=sandbox.target,
                    created_at=sandbox.created_at,
                    started_at=sandbox.started_at,
                    ends_at=sandbox.ends_at,
                    metadata=dict(sandbox.metadata),
                    egress=sandbox.egress,
                    has_gateway=sandbox.has_gateway,
                    cpus=sandbox.cpus,
                    memory_mib=sandbox.memory_mib,
                    secrets_encrypted=self._vault.encrypt(asdict(sandbox.secrets)),
                )
            )
            await connection.execute(
                insert(pods).values(
                    id=pod.id,
                    sandbox_id=sandbox.id,
                    created_at=sandbox.created_at,
                    secrets_encrypted=self._vault.encrypt(asdict(pod.secrets)),
                )
            )

    async def find(self, sandbox_id: str, *, team_id: str) -> Sandbox | None:
        """A sandbox of the team that has not been told to stop."""
        async with self._database.transaction() as connection:
            row = (
                (
                    await connection.execute(
                        select(sandboxes).where(
                            sandboxes.c.id == sandbox_id,
                            sandboxes.c.team_id == team_id,
                            sandboxes.c.target == Status.RUNNING,
                        )
                    )
                )
                .mappings()
                .one_or_none()
            )
        return None if row is None else self._sandbox(row)

    async def running(self, *, team_id: str | None = None) -> list[Sandbox]:
        """Sandboxes that run and should, of one team or of all, newest first."""
        query = (
            select(sandboxes)
            .where(sandboxes.c.status == Status.RUNNING, sandboxes.c.target == Status.RUNNING)
            .order_by(sandboxes.c.started_at.desc(), sandboxes.c.id)
        )
        if team_id is not None:
            query = query.where(sandboxes.c.team_id == team_id)
        async with self._database.transaction() as connection:
            return [self._sandbox(row) for row in (await connection.execute(query)).mappings()]

    async def mark_running(self, sandbox_id: str, *, started_at: datetime, ends_at: datetime) -> bool:
        """False if the sandbox was told to stop meanwhile."""
        async with self._database.transaction() as connection:
            result = await connection.execute(
                update(sandboxes)
                .where(sandboxes.c.id == sandbox_id, sandboxes.c.target == Status.RUNNING)
                .values(status=Status.RUNNING, started_at=started_at, ends_at=ends_at)
            )
        return result.rowcount == 1

    async def set_ends_at(self, sandbox_id: str, ends_at: datetime) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(update(sandboxes).where(sandboxes.c.id == sandbox_id).values(ends_at=ends_at))

    async def set_secrets(self, sandbox_id: str, secrets: SandboxSecrets) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(
                update(sandboxes)
                .where(sandboxes.c.id == sandbox_id, sandboxes.c.target == Status.RUNNING)
                .values(secrets_encrypted=self._vault.encrypt(asdict(secrets)))
            )

    async def ask_to_stop(self, sandbox_id: str, *, team_id: str | None = None, failure: str | None = None) -> bool:
        """Move the target to stopped. False if there is no such sandbox or it was told to stop before."""
        query = update(sandboxes).where(sandboxes.c.id == sandbox_id, sandboxes.c.target == Status.RUNNING)
        if team_id is not None:
            query = query.where(sandboxes.c.team_id == team_id)
        async with self._database.transaction() as connection:
            result = await connection.execute(query.values(target=Status.STOPPED, failure=failure))
        return result.rowcount == 1

    async def abandon_starting(self) -> None:
        """Tell every sandbox that is still starting to stop: whoever was starting it is gone."""
        async with self._database.transaction() as connection:
            await connection.execute(
                update(sandboxes)
                .where(sandboxes.c.status == Status.STARTING, sandboxes.c.target == Status.RUNNING)
                .values(target=Status.STOPPED, failure="The control plane was stopped while the sandbox was starting.")
            )

    async def to_stop(self) -> list[str]:
        """Ids of sandboxes that should be stopped and are not yet."""
        query = select(sandboxes.c.id).where(sandboxes.c.target == Status.STOPPED, sandboxes.c.status != Status.STOPPED)
        async with self._database.transaction() as connection:
            return list((await connection.execute(query)).scalars())

    async def expired(self, now: datetime) -> list[str]:
        query = select(sandboxes.c.id).where(
            sandboxes.c.target == Status.RUNNING, sandboxes.c.status == Status.RUNNING, sandboxes.c.ends_at <= now
        )
        async with self._database.transaction() as connection:
            return list((await connection.execute(query)).scalars())

    async def next_expiry(self) -> datetime | None:
        query = select(sandboxes.c.ends_at).where(
            sandboxes.c.target == Status.RUNNING, sandboxes.c.status == Status.RUNNING
        )
        async with self._database.transaction() as connection:
            return (await connection.execute(query.order_by(sandboxes.c.ends_at).limit(1))).scalar_one_or_none()

    async def pod_of(self, sandbox_id: str) -> PodRecord | None:
        async with self._database.transaction() as connection:
            row = (
                (await connection.execute(select(pods).where(pods.c.sandbox_id == sandbox_id))).mappings().one_or_none()
            )
        return None if row is None else self._pod(row)

    async def pods(self) -> dict[str, PodRecord]:
        """All recorded pods by pod id."""
        async with self._database.transaction() as connection:
            return {row["id"]: self._pod(row) for row in (await connection.execute(select(pods))).mappings()}

    async def mark_stopped(self, sandbox_id: str, now: datetime) -> None:
        """The pod is gone: forget it, and with it every secret of the sandbox. Safe to repeat."""
        async with self._database.transaction() as connection:
            await connection.execute(delete(pods).where(pods.c.sandbox_id == sandbox_id))
            await connection.execute(
                update(sandboxes)
                .where(sandboxes.c.id == sandbox_id)
                .values(status=Status.STOPPED, target=Status.STOPPED, stopped_at=now, secrets_encrypted=None)
            )
            await connection.execute(delete(sandboxes).where(sandboxes.c.stopped_at < now - _KEEP_STOPPED))

    async def check_secrets(self) -> None:
        """Raises: VaultError if something stored was encrypted with a key that the vault does not have."""
        async with self._database.transaction() as connection:
            for table in (sandboxes, pods):
                column = table.c.secrets_encrypted
                for token in (await connection.execute(select(column).where(column.is_not(None)))).scalars():
                    self._vault.decrypt(token)

    async def renew_secrets(self) -> int:
        """Encrypt everything stored anew with the vault's first key; the number of values."""
        count = 0
        async with self._database.transaction() as connection:
            for table in (sandboxes, pods):
                column = table.c.secrets_encrypted
                rows = (await connection.execute(select(table.c.id, column).where(column.is_not(None)))).all()
                for row_id, token in rows:
                    await connection.execute(
                        update(table).where(table.c.id == row_id).values(secrets_encrypted=self._vault.renew(token))
                    )
                count += len(rows)
        return count

    def _sandbox(self, row: RowMapping) -> Sandbox:
        secrets = cast(dict[str, Any], self._vault.decrypt(row["secrets_encrypted"]))
        secrets["mcp_options"] = McpOptions(**secrets["mcp_options"])
        return Sandbox(
            id=row["id"],
            team_id=row["team_id"],
            template=row["template"],
            status=Status(row["status"]),
            target=Status(row["target"]),
            created_at=row["created_at"],
            started_at=row["started_at"],
            ends_at=row["ends_at"],
            metadata=cast(Mapping[str, str], row["metadata"]),
            egress=row["egress"],
            has_gateway=row["has_gateway"],
            cpus=row["cpus"],
            memory_mib=row["memory_mib"],
            secrets=SandboxSecrets(**secrets),
        )

    def _pod(self, row: RowMapping) -> PodRecord:
        secrets = cast(dict[str, Any], self._vault.decrypt(row["secrets_encrypted"]))
        return PodRecord(id=row["id"], sandbox_id=row["sandbox_id"], secrets=PodSecrets(**secrets))
