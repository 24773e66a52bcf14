"""Every statement the template room sends to the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, RowMapping, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import Database
from app.database.tables import (
    template_build_logs,
    template_builds,
    template_layers,
    template_private_names,
    template_tags,
    templates,
)
from app.errors import InvalidRequest
from app.templates.models import (
    Build,
    BuildFailure,
    BuildStatus,
    LogLine,
    Runs,
    Tag,
    Template,
)
from app.vault import Vault

_AGES_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class TemplateStore:
    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    # -- templates --------------------------------------------------------------------------------------------------

    async def add_build(self, template: Template, build: Build) -> tuple[Template, Build]:
        """Record a build of the team's template of that name, which is recorded too unless it is there already.

        A finished build gets its tags at once. Raises: InvalidRequest if the name belongs to another kind.
        """
        try:
            return await self._add_build(template, build)
        except IntegrityError:
            # Another request has just recorded a template of that name, which is found this time.
            return await self._add_build(template, build)

    async def _add_build(self, template: Template, build: Build) -> tuple[Template, Build]:
        async with self._database.transaction() as connection:
            known = await self._named(connection, template.team_id, template.name) if template.name else None
            if known is None:
                await connection.execute(insert(templates).values(**asdict(template)))
                known = template
            elif known.kind != template.kind:
                raise name_taken(known)
            build = replace(build, template_id=known.id)
            await connection.execute(insert(template_builds).values(**self._columns(build)))
            if build.status is BuildStatus.READY:
                await self._assign(connection, build, build.wanted_tags, build.created_at)
        return known, build

    async def find_template(self, team_id: str, name: str, *, namespace: str | None = None) -> Template | None:
        """The team's own by name, then by id, then a public one of another team by id or by its name there."""
        owner = namespace or team_id
        is_visible = or_(templates.c.team_id == team_id, templates.c.public)
        async with self._database.transaction() as connection:
            for condition in (
                and_(templates.c.name == name, templates.c.team_id == owner, is_visible),
                and_(templates.c.id == name, is_visible),
            ):
                row = (await connection.execute(select(templates).where(condition))).mappings().one_or_none()
                if row is not None and (namespace is None or row["team_id"] == namespace):
                    return Template(**row)
        return None

    async def list_templates(self, team_id: str, *, kind: str) -> list[Template]:
        """Newest first."""
        query = select(templates).where(templates.c.team_id == team_id, templates.c.kind == kind)
        async with self._database.transaction() as connection:
            rows = await connection.execute(query.order_by(templates.c.created_at.desc(), templates.c.id))
            return [Template(**row) for row in rows.mappings()]

    async def set_public(self, template_id: str, public: bool, now: datetime) -> None:
        await self._update(templates.c.id == template_id, public=public, updated_at=now)

    async def count_spawn(self, template_id: str, now: datetime) -> None:
        await self._update(templates.c.id == template_id, spawn_count=templates.c.spawn_count + 1, last_spawned_at=now)

    async def delete_template(self, template_id: str) -> None:
        """With everything that belongs to it; the images its builds had are given up."""
        async with self._database.transaction() as connection:
            builds = select(template_builds.c.id).where(template_builds.c.template_id == template_id)
            query = select(template_builds.c.image).where(
                template_builds.c.template_id == template_id, template_builds.c.image.is_not(None)
            )
            images = list((await connection.execute(query)).scalars())
            await connection.execute(delete(template_tags).where(template_tags.c.template_id == template_id))
            await connection.execute(delete(template_build_logs).where(template_build_logs.c.build_id.in_(builds)))
            await connection.execute(delete(template_builds).where(template_builds.c.template_id == template_id))
            await connection.execute(delete(templates).where(templates.c.id == template_id))
            await self._give_up(connection, images)

    # -- builds -----------------------------------------------------------------------------------------------------

    async def find_build(self, template_id: str, build_id: str) -> Build | None:
        query = select(template_builds).where(
            template_builds.c.id == build_id, template_builds.c.template_id == template_id
        )
        async with self._database.transaction() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else self._build(row)

    async def builds_of(self, template_ids: Sequence[str]) -> dict[str, list[Build]]:
        """By template, newest first."""
        found: dict[str, list[Build]] = {template_id: [] for template_id in template_ids}
        query = select(template_builds).where(template_builds.c.template_id.in_(template_ids))
        async with self._database.transaction() as connection:
            rows = await connection.execute(query.order_by(template_builds.c.created_at.desc(), template_builds.c.id))
            for row in rows.mappings():
                found[row["template_id"]].append(self._build(row))
        return found

    async def begin_build(self, build_id: str, now: datetime) -> bool:
        """Take note that its steps are there. False if they were before."""
        query = update(template_builds).where(
            template_builds.c.id == build_id,
            template_builds.c.status == BuildStatus.WAITING,
            template_builds.c.started_at.is_(None),
        )
        async with self._database.transaction() as connection:
            result = await connection.execute(query.values(started_at=now))
        return result.rowcount == 1

    async def mark_building(self, build_id: str) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(
                update(template_builds).where(template_builds.c.id == build_id).values(status=BuildStatus.BUILDING)
            )

    async def finish_build(self, build: Build, now: datetime) -> bool:
        """Record how it went; one that is ready gets its tags. False if its template was deleted meanwhile."""
        columns = self._columns(build) | {"finished_at": now}
        async with self._database.transaction() as connection:
            result = await connection.execute(
                update(template_builds).where(template_builds.c.id == build.id).values(**columns)
            )
            if result.rowcount == 1 and build.status is BuildStatus.READY:
                await self._assign(connection, build, build.wanted_tags, now)
                await connection.execute(
                    update(templates).where(templates.c.id == build.template_id).values(updated_at=now)
                )
        return result.rowcount == 1

    async def abandon_builds(self, failure: BuildFailure, now: datetime, *, forgotten_before: datetime) -> None:
        """Fail every build under way, and those whose steps were never sent: whoever was at work is gone."""
        is_open = template_builds.c.status.in_([BuildStatus.WAITING, BuildStatus.BUILDING])
        is_stuck = or_(template_builds.c.started_at.is_not(None), template_builds.c.created_at < forgotten_before)
        async with self._database.transaction() as connection:
            await connection.execute(
                update(template_builds)
                .where(is_open, is_stuck)
                .values(status=BuildStatus.ERROR, failure=_failure_column(failure), finished_at=now)
            )

    async def drop_untagged_images(self, before: datetime) -> None:
        """Give up the images of builds that no tag leads to and that were finished `before` some moment."""
        is_tagged = select(template_tags.c.build_id).where(template_tags.c.build_id == template_builds.c.id).exists()
        is_superfluous = and_(template_builds.c.image.is_not(None), template_builds.c.finished_at < before, ~is_tagged)
        async with self._database.transaction() as connection:
            query = select(template_builds.c.image).where(is_superfluous)
            images = list((await connection.execute(query)).scalars())
            await connection.execute(update(template_builds).where(is_superfluous).values(image=None))
            await self._give_up(connection, images)

    async def images(self) -> set[str]:
        """Of all builds."""
        query = select(template_builds.c.image).where(template_builds.c.image.is_not(None))
        async with self._database.transaction() as connection:
            return set((await connection.execute(query)).scalars())

    # -- tags -------------------------------------------------------------------------------------------------------

    async def tagged_build(self, template_id: str, tag: str) -> Build | None:
        query = (
            select(template_builds)
            .join(template_tags, template_tags.c.build_id == template_builds.c.id)
            .where(template_tags.c.template_id == template_id, template_tags.c.tag == tag)
        )
        async with self._database.transaction() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else self._build(row)

    async def tags(self, template_id: str) -> list[Tag]:
        query = select(template_tags).where(template_tags.c.template_id == template_id)
        async with self._database.transaction() as connection:
            rows = await connection.execute(query.order_by(template_tags.c.created_at.desc(), template_tags.c.tag))
            return [Tag(tag=row.tag, build_id=row.build_id, created_at=row.created_at) for row in rows]

    async def assign_tags(self, build: Build, tags: Iterable[str], now: datetime) -> None:
        async with self._database.transaction() as connection:
            await self._assign(connection, build, tags, now)

    async def remove_tags(self, template_id: str, tags: Sequence[str]) -> set[str]:
        """All or, if one of them is missing, none. Those that are missing."""
        is_one = and_(template_tags.c.template_id == template_id, template_tags.c.tag.in_(tags))
        async with self._database.transaction() as connection:
            missing = set(tags) - set((await connection.execute(select(template_tags.c.tag).where(is_one))).scalars())
            if not missing:
                await connection.execute(delete(template_tags).where(is_one))
        return missing

    # -- snapshots --------------------------------------------------------------------------------------------------

    async def list_snapshots(
        self,
        team_id: str,
        *,
        sandbox_id: str | None,
        name: str | None,
        tag: str | None,
        before: tuple[datetime, str] | None,
        limit: int,
    ) -> list[tuple[Template, Tag]]:
        """Newest first; `before` is when and which build the page before ended with."""
        conditions: list[ColumnElement[bool]] = [templates.c.team_id == team_id, templates.c.kind == "snapshot"]
        if sandbox_id is not None:
            conditions.append(templates.c.sandbox_id == sandbox_id)
        if name is not None:
            conditions.append(or_(templates.c.name == name, templates.c.id == name))
        if tag is not None:
            conditions.append(template_tags.c.tag == tag)
        if before is not None:
            moment, build_id = before
            conditions.append(
                or_(
                    template_tags.c.created_at < moment,
                    and_(template_tags.c.created_at == moment, template_tags.c.build_id > build_id),
                )
            )
        query = (
            select(templates, template_tags.c.tag, template_tags.c.build_id, template_tags.c.created_at.label("at"))
            .join(template_tags, template_tags.c.template_id == templates.c.id)
            .where(*conditions)
            .order_by(template_tags.c.created_at.desc(), template_tags.c.build_id)
            .limit(limit)
        )
        async with self._database.transaction() as connection:
            found = []
            for row in (await connection.execute(query)).mappings():
                template = Template(**{column.name: row[column.name] for column in templates.columns})
                found.append((template, Tag(tag=row["tag"], build_id=row["build_id"], created_at=row["at"])))
        return found

    # -- logs and layers --------------------------------------------------------------------------------------------

    async def add_log(self, build_id: str, begin: int, lines: Sequence[LogLine]) -> None:
        """Lines from position `begin` on."""
        rows = [{"build_id": build_id, "position": begin + i, **asdict(line)} for i, line in enumerate(lines)]
        async with self._database.transaction() as connection:
            await connection.execute(insert(template_build_logs), rows)

    async def log(self, build_id: str, *, offset: int, limit: int) -> list[LogLine]:
        columns = template_build_logs.c
        query = select(columns.at, columns.message, columns.level, columns.step).where(
            columns.build_id == build_id, columns.position >= offset
        )
        async with self._database.transaction() as connection:
            rows = await connection.execute(query.order_by(columns.position).limit(limit))
            return [LogLine(**row) for row in rows.mappings()]

    async def layer_used(self, image: str, now: datetime) -> None:
        # Another build may record the same layer at the same moment, with the same outcome.
        with suppress(IntegrityError):
            async with self._database.transaction() as connection:
                changed = await connection.execute(
                    update(template_layers).where(template_layers.c.image == image).values(used_at=now)
                )
                if changed.rowcount == 0:
                    await connection.execute(insert(template_layers).values(image=image, used_at=now))

    async def layers(self) -> dict[str, datetime]:
        """Image -> when a build last used it."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(select(template_layers.c.image, template_layers.c.used_at))
            return {row.image: row.used_at for row in rows}

    async def forget_layer(self, image: str) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(delete(template_layers).where(template_layers.c.image == image))

    async def add_private_name(self, image: str, earlier: str | None) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(insert(template_private_names).values(image=image, earlier=earlier))

    async def private_names(self) -> dict[str, str | None]:
        """Name that is to be taken from an image -> the image that had it before, by its other name."""
        async with self._database.reading() as connection:
            rows = await connection.execute(select(template_private_names.c.image, template_private_names.c.earlier))
            return {row.image: row.earlier for row in rows}

    async def forget_private_name(self, image: str) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(delete(template_private_names).where(template_private_names.c.image == image))

    # -- helpers ----------------------------------------------------------------------------------------------------

    async def _update(self, condition: ColumnElement[bool], **values: object) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(update(templates).where(condition).values(**values))

    async def _named(self, connection: AsyncConnection, team_id: str, name: str) -> Template | None:
        query = select(templates).where(templates.c.team_id == team_id, templates.c.name == name)
        row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else Template(**row)

    async def _give_up(self, connection: AsyncConnection, images: Sequence[str]) -> None:
        """As layers that have not been used for ages."""
        await connection.execute(delete(template_layers).where(template_layers.c.image.in_(images)))
        for image in dict.fromkeys(images):
            await connection.execute(insert(template_layers).values(image=image, used_at=_AGES_AGO))

    async def _assign(self, connection: AsyncConnection, build: Build, tags: Iterable[str], now: datetime) -> None:
        for tag in tags:
            values = {"build_id": build.id, "created_at": now}
            moved = await connection.execute(
                update(template_tags)
                .where(template_tags.c.template_id == build.template_id, template_tags.c.tag == tag)
                .values(**values)
            )
            if moved.rowcount == 0:
                await connection.execute(insert(template_tags).values(template_id=build.template_id, tag=tag, **values))

    def _columns(self, build: Build) -> dict[str, Any]:
        return {
            "id": build.id,
            "template_id": build.template_id,
            "status": build.status,
            "failure": None if build.failure is None else _failure_column(build.failure),
            "wanted_tags": list(build.wanted_tags),
            "image": build.image,
            "cpus": build.cpus,
            "memory_mib": build.memory_mib,
            "has_gateway": build.has_gateway,
            "runs_encrypted": self._vault.encrypt(asdict(build.runs)),
            "created_at": build.created_at,
            "started_at": build.started_at,
            "finished_at": build.finished_at,
        }

    def _build(self, row: RowMapping) -> Build:
        runs = cast(dict[str, Any], self._vault.decrypt(row["runs_encrypted"]))
        return Build(
            id=row["id"],
            template_id=row["template_id"],
            status=BuildStatus(row["status"]),
            failure=None if row["failure"] is None else _failure(row["failure"]),
            wanted_tags=tuple(row["wanted_tags"]),
            image=row["image"],
            cpus=row["cpus"],
            memory_mib=row["memory_mib"],
            has_gateway=row["has_gateway"],
            runs=Runs(**runs),
            created_at=row["created_at"],
            started_at=row["started_at"],
            finished_at=row["finished_at"],
        )


def name_taken(template: Template) -> InvalidRequest:
    return InvalidRequest(f"The name {template.name!r} is that of a {template.kind}; choose another one.")


def _failure_column(failure: BuildFailure) -> dict[str, Any]:
    return {
        "message": failure.message,
        "step": failure.step,
        "log": [asdict(line) | {"at": line.at.isoformat()} for line in failure.log],
    }


def _failure(column: Mapping[str, Any]) -> BuildFailure:
    lines = [LogLine(**(line | {"at": datetime.fromisoformat(line["at"])})) for line in column["log"]]
    return BuildFailure(message=column["message"], step=column["step"], log=tuple(lines))
