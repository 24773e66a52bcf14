"""Every statement the sandbox room sends to the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import ColumnElement, RowMapping, Select, and_, case, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import Database
from app.database.tables import pods, sandboxes
from app.errors import Conflict
from app.sandboxes.gateway_plan import GatewayPlan
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
from app.templates import ResolvedTemplate
from app.vault import Vault

_KEEP_STOPPED = timedelta(days=7)
_ALIVE = (Status.RUNNING, Status.PAUSED)
"""Targets of a sandbox that has not been told to stop."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sandbox stands in a list that is ordered by start."""

    started_at: datetime
    sandbox_id: str


@dataclass(frozen=True, slots=True)
class KeyUse:
    sandbox_id: str
    request_digest: str


class Store:
    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    # -- sandboxes --------------------------------------------------------------------------------------------------

    async def insert(
        self,
        sandbox: Sandbox,
        pod: PodRecord,
        *,
        idempotency_key: str | None = None,
        request_digest: str | None = None,
        fork_image: str | None = None,
    ) -> PodRecord:
        """Record a sandbox and its pod together, before anything of them is started.

        Claims a warm pod of `pod.recipe` in place of `pod` if there is one. `fork_image` is removed with the last
        sandbox that was recorded with it. Raises: Conflict if the team has used the idempotency key before.
        """
        try:
            async with self._database.transaction() as connection:
                await connection.execute(
                    insert(sandboxes).values(
                        id=sandbox.id,
                        team_id=sandbox.team_id,
                        template_id=sandbox.template.template_id,
                        template=sandbox.template.name,
                        status=sandbox.status,
                        target=sandbox.target,
                        created_at=sandbox.created_at,
                        started_at=sandbox.started_at,
                        ends_at=sandbox.ends_at,
                        timeout_s=sandbox.timeout_s,
                        lifecycle=asdict(sandbox.lifecycle),
                        pause_mode=sandbox.pause_mode,
                        metadata=dict(sandbox.metadata),
                        egress=sandbox.has_egress,
                        network=asdict(sandbox.network),
                        volume_mounts=[asdict(mount) for mount in sandbox.mounts],
                        has_gateway=sandbox.has_gateway,
                        cpus=sandbox.cpus,
                        memory_mib=sandbox.memory_mib,
                        secrets_encrypted=self._encrypted(sandbox),
                        fork_image=fork_image,
                        idempotency_key=idempotency_key,
                        request_digest=request_digest,
                    )
                )
                claimed = await self._claim(connection, pod.recipe, sandbox.id)
                if claimed is None:
                    await connection.execute(insert(pods).values(**self._pod_values(pod, sandbox.created_at)))
        except IntegrityError as error:
            if idempotency_key is None:
                raise
            raise Conflict(f"The idempotency key {idempotency_key!r} was used before.") from error
        return claimed or pod

    async def find(self, sandbox_id: str, *, team_id: str | None = None) -> Sandbox | None:
        """A sandbox that has not been told to stop, of one team or of any."""
        query = select(sandboxes).where(sandboxes.c.id == sandbox_id, sandboxes.c.target.in_(_ALIVE))
        return await self._one(query if team_id is None else query.where(sandboxes.c.team_id == team_id))

    async def find_by_key(self, team_id: str, idempotency_key: str) -> KeyUse | None:
        """What a create with this key made, unless it failed."""
        query = select(sandboxes.c.id, sandboxes.c.request_digest).where(
            sandboxes.c.team_id == team_id, sandboxes.c.idempotency_key == idempotency_key
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else KeyUse(row.id, row.request_digest)

    async def alive(self) -> list[Sandbox]:
        """Sandboxes that run or are paused and have not been told to stop, newest first."""
        return await self._all(_alive(select(sandboxes)).order_by(sandboxes.c.started_at.desc(), sandboxes.c.id))

    async def alive_ids(self) -> list[str]:
        """The same by their ids, in no order."""
        return await self._ids(_alive(select(sandboxes.c.id)))

    async def page(
        self,
        team_id: str,
        *,
        states: Sequence[Status],
        template: str | None,
        started_after: datetime | None,
        is_ascending: bool,
        after: Place | None,
        limit: int,
    ) -> list[Sandbox]:
        """A team's sandboxes that are in one of `states` and stay, by start (then id); `after` is not among them."""
        query = select(sandboxes).where(
            sandboxes.c.team_id == team_id, sandboxes.c.status.in_(states), sandboxes.c.target.in_(_ALIVE)
        )
        if template is not None:
            query = query.where(or_(sandboxes.c.template_id == template, sandboxes.c.template == template))
        if started_after is not None:
            query = query.where(sandboxes.c.started_at >= started_after)
        started_at, sandbox_id = sandboxes.c.started_at, sandboxes.c.id
        if after is not None:
            beyond = started_at > after.started_at if is_ascending else started_at < after.started_at
            next_id = sandbox_id > after.sandbox_id if is_ascending else sandbox_id < after.sandbox_id
            query = query.where(or_(beyond, and_(started_at == after.started_at, next_id)))
        order = (started_at.asc(), sandbox_id.asc()) if is_ascending else (started_at.desc(), sandbox_id.desc())
        return await self._all(query.order_by(*order).limit(limit))

    async def template_in_use(self, template_id: str) -> bool:
        query = select(sandboxes.c.id).where(sandboxes.c.template_id == template_id, sandboxes.c.target.in_(_ALIVE))
        async with self._database.reading() as connection:
            return (await connection.execute(query.limit(1))).first() is not None

    async def mark_running(
        self, sandbox_id: str, *, started_at: datetime, ends_at: datetime, pod_id: str, address: str
    ) -> bool:
        """False if the sandbox was told otherwise meanwhile."""
        async with self._database.transaction() as connection:
            result = await connection.execute(
                update(sandboxes)
                .where(sandboxes.c.id == sandbox_id, sandboxes.c.target == Status.RUNNING)
                .values(status=Status.RUNNING, started_at=started_at, ends_at=ends_at, pause_mode=None)
            )
            await connection.execute(update(pods).where(pods.c.id == pod_id).values(address=address))
        return result.rowcount == 1

    async def ask_to_pause(self, sandbox_id: str, mode: PauseMode, *, if_over_at: datetime | None = None) -> bool:
        """Move the target of a running sandbox to paused. False if it does not run or was told otherwise.

        `if_over_at`: only if its time is over then.
        """
        values = {"target": Status.PAUSED, "pause_mode": mode}
        if if_over_at is not None:
            return await self._update(sandbox_id, values, _is_over(if_over_at))
        return await self._update(
            sandbox_id, values, sandboxes.c.status == Status.RUNNING, sandboxes.c.target == Status.RUNNING
        )

    async def mark_paused(self, sandbox_id: str, mode: PauseMode) -> bool:
        """False if the sandbox was told otherwise meanwhile."""
        values = {"status": Status.PAUSED, "pause_mode": mode}
        return await self._update(sandbox_id, values, sandboxes.c.target == Status.PAUSED)

    async def take_back_pause(self, sandbox_id: str) -> bool:
        """A pause failed and the sandbox goes on. False if it was told to stop meanwhile."""
        return await self._update(
            sandbox_id,
            {"target": Status.RUNNING, "pause_mode": None},
            sandboxes.c.status == Status.RUNNING,
            sandboxes.c.target == Status.PAUSED,
        )

    async def mark_halted(self, sandbox_id: str) -> None:
        """The memory of a paused sandbox is given up."""
        await self._update(sandbox_id, {"pause_mode": PauseMode.FILESYSTEM}, sandboxes.c.status == Status.PAUSED)

    async def ask_to_run(self, sandbox_id: str, *, timeout_s: int | None = None) -> bool:
        """Move the target of a paused sandbox to running. False if it is not paused or was told to stop."""
        values: dict[str, Any] = {"target": Status.RUNNING}
        if timeout_s is not None:
            values["timeout_s"] = timeout_s
        return await self._update(
            sandbox_id, values, sandboxes.c.status == Status.PAUSED, sandboxes.c.target.in_(_ALIVE)
        )

    async def take_back_resume(self, sandbox_id: str) -> bool:
        """A resume failed and the sandbox stays paused. False if it was told to stop meanwhile."""
        return await self._update(
            sandbox_id,
            {"target": Status.PAUSED},
            sandboxes.c.status == Status.PAUSED,
            sandboxes.c.target == Status.RUNNING,
        )

    async def set_timeout(self, sandbox_id: str, *, ends_at: datetime, timeout_s: int) -> bool:
        """False if the sandbox was told to stop."""
        values = {"ends_at": ends_at, "timeout_s": timeout_s}
        return await self._update(sandbox_id, values, sandboxes.c.target.in_(_ALIVE))

    async def extend(self, sandbox_id: str, *, ends_at: datetime, timeout_s: int) -> bool:
        """Let a sandbox that is neither paused nor about to be live longer. False if it is, or ends later already."""
        values = {"ends_at": ends_at, "timeout_s": timeout_s}
        is_up = and_(sandboxes.c.target == Status.RUNNING, sandboxes.c.status != Status.PAUSED)
        return await self._update(sandbox_id, values, is_up, sandboxes.c.ends_at < ends_at)

    async def extend_paused(self, sandbox_id: str, *, timeout_s: int) -> bool:
        """Let one that is paused or about to be have at least that much time once it is woken. False if it is not."""
        longer = case((sandboxes.c.timeout_s < timeout_s, timeout_s), else_=sandboxes.c.timeout_s)
        is_paused = or_(sandboxes.c.target == Status.PAUSED, sandboxes.c.status == Status.PAUSED)
        return await self._update(sandbox_id, {"timeout_s": longer}, sandboxes.c.target.in_(_ALIVE), is_paused)

    async def set_network(self, sandbox_id: str, network: NetworkRules) -> None:
        await self._update(sandbox_id, {"network": asdict(network)}, sandboxes.c.target.in_(_ALIVE))

    async def set_secrets(self, sandbox: Sandbox) -> None:
        await self._update(
            sandbox.id, {"secrets_encrypted": self._encrypted(sandbox)}, sandboxes.c.target == Status.RUNNING
        )

    async def ask_to_stop(self, sandbox_id: str, *, team_id: str | None = None, failure: str | None = None) -> bool:
        """Move the target to stopped. False if there is no such sandbox or it was told to stop before.

        With a `failure` its idempotency key is free again: a retry is to start anew.
        """
        values: dict[str, Any] = {"target": Status.STOPPED, "failure": failure}
        if failure is not None:
            values["idempotency_key"] = None
        conditions: list[ColumnElement[bool]] = [sandboxes.c.target.in_(_ALIVE)]
        if team_id is not None:
            conditions.append(sandboxes.c.team_id == team_id)
        return await self._update(sandbox_id, values, *conditions)

    async def ask_to_stop_if_over(self, sandbox_id: str, now: datetime) -> bool:
        """Move the target of a running sandbox to stopped, if its time is over. Somebody may have lengthened it."""
        return await self._update(sandbox_id, {"target": Status.STOPPED, "failure": None}, _is_over(now))

    async def abandon_moves(self) -> None:
        """Settle what a control plane that is gone was about to do: nobody waits for it any more.

        What was starting is told to stop; what was being resumed stays paused.
        """
        async with self._database.transaction() as connection:
            await connection.execute(
                update(sandboxes)
                .where(sandboxes.c.status == Status.STARTING, sandboxes.c.target.in_(_ALIVE))
                .values(
                    target=Status.STOPPED,
                    failure="The control plane was stopped while the sandbox was starting.",
                    idempotency_key=None,
                )
            )
            await connection.execute(
                update(sandboxes)
                .where(sandboxes.c.status == Status.PAUSED, sandboxes.c.target == Status.RUNNING)
                .values(target=Status.PAUSED)
            )

    async def to_stop(self) -> list[str]:
        """Ids of sandboxes that should be stopped and are not yet."""
        query = select(sandboxes.c.id).where(sandboxes.c.target == Status.STOPPED, sandboxes.c.status != Status.STOPPED)
        return await self._ids(query)

    async def expired(self, now: datetime) -> list[str]:
        return await self._ids(select(sandboxes.c.id).where(_is_over(now)))

    async def next_expiry(self) -> datetime | None:
        query = select(sandboxes.c.ends_at).where(
            sandboxes.c.target == Status.RUNNING, sandboxes.c.status == Status.RUNNING
        )
        async with self._database.reading() as connection:
            return (await connection.execute(query.order_by(sandboxes.c.ends_at).limit(1))).scalar_one_or_none()

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

    async def unused_fork_images(self) -> list[str]:
        """Images that were made for forks of which none is left."""
        in_use = func.sum(case((sandboxes.c.status != Status.STOPPED, 1), else_=0))
        query = (
            select(sandboxes.c.fork_image)
            .where(sandboxes.c.fork_image.is_not(None))
            .group_by(sandboxes.c.fork_image)
            .having(in_use == 0)
        )
        return await self._ids(query)

    async def fork_images(self) -> set[str]:
        """Images that are recorded with sandboxes, whether these are left or not."""
        return set(await self._ids(select(sandboxes.c.fork_image).where(sandboxes.c.fork_image.is_not(None))))

    async def forget_fork_image(self, image: str) -> None:
        """The engine does not have it any more."""
        async with self._database.transaction() as connection:
            await connection.execute(update(sandboxes).where(sandboxes.c.fork_image == image).values(fork_image=None))

    # -- pods -------------------------------------------------------------------------------------------------------

    async def insert_warm(self, pod: PodRecord, now: datetime) -> None:
        """Record a pod that is going to wait for a sandbox, before it is started."""
        async with self._database.transaction() as connection:
            await connection.execute(insert(pods).values(**self._pod_values(pod, now)))

    async def mark_warm(self, pod_id: str, *, address: str, now: datetime) -> None:
        """From now on the pod can be claimed."""
        async with self._database.transaction() as connection:
            await connection.execute(
                update(pods)
                .where(pods.c.id == pod_id, pods.c.sandbox_id.is_(None))
                .values(address=address, ready_at=now)
            )

    async def replace_pod(self, old: PodRecord, new: PodRecord, now: datetime) -> None:
        """Give a sandbox another pod; the old one belongs to nobody from now on and cannot be claimed."""
        async with self._database.transaction() as connection:
            await connection.execute(
                update(pods).where(pods.c.id == old.id).values(sandbox_id=None, recipe=None, ready_at=None)
            )
            await connection.execute(insert(pods).values(**self._pod_values(new, now)))

    async def withdraw(self, pod_id: str) -> bool:
        """Keep a warm pod from being claimed, because it is going to be removed. False if it is claimed already."""
        async with self._database.transaction() as connection:
            result = await connection.execute(
                update(pods).where(pods.c.id == pod_id, pods.c.sandbox_id.is_(None)).values(recipe=None, ready_at=None)
            )
        return result.rowcount == 1

    async def forget_pod(self, pod_id: str) -> None:
        """The engine has nothing of a pod without a sandbox any more."""
        async with self._database.transaction() as connection:
            await connection.execute(delete(pods).where(pods.c.id == pod_id, pods.c.sandbox_id.is_(None)))

    async def pod_of(self, sandbox_id: str) -> PodRecord | None:
        async with self._database.reading() as connection:
            row = (
                (await connection.execute(select(pods).where(pods.c.sandbox_id == sandbox_id))).mappings().one_or_none()
            )
        return None if row is None else self._pod(row)

    async def pods(self) -> dict[str, PodRecord]:
        """All recorded pods by pod id."""
        async with self._database.reading() as connection:
            return {row["id"]: self._pod(row) for row in (await connection.execute(select(pods))).mappings()}

    async def _claim(self, connection: AsyncConnection, recipe: str | None, sandbox_id: str) -> PodRecord | None:
        """Give the longest waiting warm pod of a recipe to a sandbox."""
        if recipe is None:
            return None
        longest_waiting = (
            select(pods.c.id)
            .where(pods.c.recipe == recipe, pods.c.sandbox_id.is_(None), pods.c.ready_at.is_not(None))
            .order_by(pods.c.ready_at)
            .limit(1)
            .with_for_update(skip_locked=True)  # for Postgres; SQLite has one writer at a time
            .scalar_subquery()
        )
        claim = update(pods).where(pods.c.id == longest_waiting).values(sandbox_id=sandbox_id).returning(pods)
        row = (await connection.execute(claim)).mappings().one_or_none()
        return None if row is None else self._pod(row)

    # -- rows -------------------------------------------------------------------------------------------------------

    async def _update(self, sandbox_id: str, values: Mapping[str, Any], *conditions: ColumnElement[bool]) -> bool:
        async with self._database.transaction() as connection:
            result = await connection.execute(
                update(sandboxes).where(sandboxes.c.id == sandbox_id, *conditions).values(**values)
            )
        return result.rowcount == 1

    async def _ids(self, query: Select[Any]) -> list[str]:
        async with self._database.reading() as connection:
            return list((await connection.execute(query)).scalars())

    async def _one(self, query: Select[Any]) -> Sandbox | None:
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else self._sandbox(row)

    async def _all(self, query: Select[Any]) -> list[Sandbox]:
        async with self._database.reading() as connection:
            rows: Iterable[RowMapping] = (await connection.execute(query)).mappings().all()
        return [self._sandbox(row) for row in rows]

    def _encrypted(self, sandbox: Sandbox) -> str:
        gateway = sandbox.secrets.gateway
        secrets = asdict(replace(sandbox.secrets, gateway=None))
        secrets["gateway"] = None if gateway is None else gateway.as_json()
        return self._vault.encrypt(secrets | {"template": asdict(sandbox.template)})

    def _sandbox(self, row: RowMapping) -> Sandbox:
        secrets = cast(dict[str, Any], self._vault.decrypt(row["secrets_encrypted"]))
        secrets["mcp_options"] = McpOptions(**secrets["mcp_options"])
        if secrets.get("gateway") is not None:
            secrets["gateway"] = GatewayPlan.from_json(secrets["gateway"])
        template = ResolvedTemplate(**secrets.pop("template"))
        lifecycle = dict(row["lifecycle"])
        return Sandbox(
            id=row["id"],
            team_id=row["team_id"],
            template=template,
            status=Status(row["status"]),
            target=Status(row["target"]),
            created_at=row["created_at"],
            started_at=row["started_at"],
            ends_at=row["ends_at"],
            timeout_s=row["timeout_s"],
            lifecycle=Lifecycle(**(lifecycle | {"pause_mode": PauseMode(lifecycle["pause_mode"])})),
            pause_mode=None if row["pause_mode"] is None else PauseMode(row["pause_mode"]),
            metadata=cast(Mapping[str, str], row["metadata"]),
            has_egress=row["egress"],
            network=_network_rules(row["network"]),
            mounts=tuple(MountedVolume(**mount) for mount in row["volume_mounts"]),
            has_gateway=row["has_gateway"],
            cpus=row["cpus"],
            memory_mib=row["memory_mib"],
            secrets=SandboxSecrets(**secrets),
        )

    def _pod_values(self, pod: PodRecord, now: datetime) -> dict[str, Any]:
        return {
            "id": pod.id,
            "sandbox_id": pod.sandbox_id,
            "created_at": now,
            "secrets_encrypted": self._vault.encrypt(asdict(pod.secrets)),
            "recipe": pod.recipe,
            "address": pod.address,
        }

    def _pod(self, row: RowMapping) -> PodRecord:
        secrets = cast(dict[str, Any], self._vault.decrypt(row["secrets_encrypted"]))
        return PodRecord(
            id=row["id"],
            sandbox_id=row["sandbox_id"],
            secrets=PodSecrets(**secrets),
            recipe=row["recipe"],
            address=row["address"],
        )


def _alive(query: Select[Any]) -> Select[Any]:
    return query.where(sandboxes.c.status.in_(_ALIVE), sandboxes.c.target.in_(_ALIVE))


def _is_over(now: datetime) -> ColumnElement[bool]:
    return and_(sandboxes.c.target == Status.RUNNING, sandboxes.c.status == Status.RUNNING, sandboxes.c.ends_at <= now)


def _network_rules(stored: Mapping[str, Any]) -> NetworkRules:
    """From the JSON of `asdict`, which has lists where the rules have tuples."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    return NetworkRules(**fields)
