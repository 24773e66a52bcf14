"""What callers can do with templates; the building itself is in `app.templates.builder`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

from app.engines.interface import Engine
from app.errors import InvalidRequest, NotFound
from app.ids_and_time import new_template_id, rfc3339
from app.templates.base_images import BuildSettings
from app.templates.builder import Builder, ImagesOfForks, PrepareServer
from app.templates.models import (
    BUILT_IN,
    DEFAULT_TAG,
    GATEWAY_TEMPLATE,
    Build,
    BuildStatus,
    LogLine,
    ResolvedTemplate,
    Runs,
    Snapshot,
    SnapshotPage,
    Tag,
    Template,
    TemplateView,
)
from app.templates.naming import Reference, check_tag, parse_new_name, parse_reference, wanted_tags
from app.templates.planning import BuildRequest, check_request
from app.templates.store import TemplateStore, name_taken
from app.templates.uploads import Uploads

LOG_PAGE = 100
"""Log lines in one answer. The SDKs read on until an answer has none."""
_BUILT_IN_BUILD = str(UUID(int=0))
_FIRST_DAY = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
_CPUS = range(1, 65)
_MEMORY_MIB = range(128, 512 * 1024 + 1)

InUse = Callable[[str], Awaitable[bool]]
"""Whether a sandbox of this template id is there, running or paused."""


class TemplateService:
    def __init__(
        self,
        *,
        store: TemplateStore,
        engine: Engine,
        uploads: Uploads,
        settings: BuildSettings,
        in_use: InUse,
        images_of_forks: ImagesOfForks,
        prepare_server: PrepareServer,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._uploads = uploads
        self._in_use = in_use
        self._now = now
        self.builder = Builder(
            store=store,
            engine=engine,
            uploads=uploads,
            settings=settings,
            resolve=self.resolve,
            images_of_forks=images_of_forks,
            prepare_server=prepare_server,
            now=now,
        )
        """Its `run` has to be running."""

    # -- what sandboxes are started from ----------------------------------------------------------------------------

    async def resolve(self, team_id: str, reference: str) -> ResolvedTemplate:
        """`reference` is an id, `name`, `name:tag`, `<namespace>/name:tag`, or a snapshot's id or name.

        Raises: NotFound (no such template or tag, or no build of it is ready), InvalidRequest (its form).
        """
        parsed = parse_reference(reference)
        if parsed.name in BUILT_IN and parsed.namespace is None:
            if parsed.tag not in (None, DEFAULT_TAG):
                raise NotFound(f"The template {parsed.name!r} comes with Sandgate and has no tags.")
            return built_in_template(parsed.name)
        template = await self._find(team_id, parsed)
        build = await self._tagged(template, parsed)
        return ResolvedTemplate(
            template_id=template.id,
            build_id=build.id,
            name=template.name or template.id,
            image=build.image,
            has_gateway=build.has_gateway,
            user=build.runs.user,
            workdir=build.runs.workdir,
            envs=build.runs.envs,
            start_command=build.runs.start_command,
            ready_command=build.runs.ready_command,
            cpus=build.cpus,
            memory_mib=build.memory_mib,
            kind=template.kind,
        )

    async def count_spawn(self, template_id: str) -> None:
        """A sandbox was started from it. Built-in templates are not counted."""
        await self._store.count_spawn(template_id, self._now())

    # -- building ---------------------------------------------------------------------------------------------------

    async def request_build(
        self, team_id: str, name: str, *, tags: Sequence[str] = (), cpus: int | None, memory_mib: int | None
    ) -> tuple[Template, Build]:
        """Record a template, unless it is there, and a build of it, whose steps are sent later.

        Raises: InvalidRequest.
        """
        reference = self._own(team_id, parse_new_name(name))
        for field, value, allowed in (("cpuCount", cpus, _CPUS), ("memoryMB", memory_mib, _MEMORY_MIB)):
            if value is not None and value not in allowed:
                raise InvalidRequest(f"{field} must be from {allowed.start} to {allowed.stop - 1}.")
        now = self._now()
        template = _new_template(team_id, "template", reference.name, now)
        build = Build(
            id=str(uuid4()),
            template_id=template.id,
            status=BuildStatus.WAITING,
            created_at=now,
            wanted_tags=wanted_tags(reference, tags),
            cpus=cpus,
            memory_mib=memory_mib,
        )
        return await self._store.add_build(template, build)

    async def upload_link(self, team_id: str, template: str, files_hash: str) -> tuple[bool, dict[str, str]]:
        """Whether the files are there, and query parameters with which they may be sent. Raises: NotFound."""
        await self._owned(team_id, template)
        return self._uploads.find(team_id, files_hash) is not None, self._uploads.sign(team_id, files_hash)

    async def receive_files(
        self, files_hash: str, *, team: str, expires: str, signature: str, body: AsyncIterator[bytes]
    ) -> None:
        """See Uploads.receive; the signature says whose files they are."""
        await self._uploads.receive(files_hash, team=team, expires=expires, signature=signature, body=body)

    async def start_build(self, team_id: str, template: str, build_id: str, request: BuildRequest) -> None:
        """Carry the build out in the background. Raises: NotFound, InvalidRequest (also when it was started before)."""
        found = await self._owned(team_id, template)
        build = await self._build(found, build_id)
        check_request(request)
        if not await self._store.begin_build(build.id, self._now()):
            raise InvalidRequest(f"Build {build.id} was started before. Ask for a new one to build again.")
        self.builder.start(found, replace(build, started_at=self._now()), request)

    async def build_status(
        self, team_id: str, template: str, build_id: str, *, offset: int = 0, limit: int = LOG_PAGE
    ) -> tuple[Build, list[LogLine]]:
        """How a build is doing, with at most a page of its log. Raises: NotFound."""
        # The status first: once it is final, so is the log.
        build = await self._build(await self._owned(team_id, template), build_id)
        return build, await self._store.log(build.id, offset=offset, limit=min(limit, LOG_PAGE))

    # -- templates and tags -----------------------------------------------------------------------------------------

    async def templates(self, team_id: str) -> list[TemplateView]:
        """The team's own, newest first, then those that come with Sandgate."""
        templates = await self._store.list_templates(team_id, kind="template")
        builds = await self._store.builds_of([template.id for template in templates])
        own = [_view(template, builds[template.id]) for template in templates if builds[template.id]]
        return own + [_built_in_view(name) for name in BUILT_IN]

    async def get(self, team_id: str, reference: str) -> TemplateView:
        """Raises: NotFound, InvalidRequest."""
        parsed = parse_reference(reference)
        if parsed.name in BUILT_IN and parsed.namespace is None:
            return _built_in_view(parsed.name)
        template = await self._find(team_id, parsed)
        builds = await self._store.builds_of([template.id])
        return _view(template, builds[template.id])

    async def set_public(self, team_id: str, reference: str, public: bool) -> TemplateView:
        """Let other teams start sandboxes from it, or no longer. Raises: NotFound, InvalidRequest."""
        template = await self._owned(team_id, reference)
        await self._store.set_public(template.id, public, self._now())
        return await self.get(team_id, template.id)

    async def delete(self, team_id: str, reference: str) -> None:
        """With its builds; a tag of a snapshot goes alone while the snapshot has others.

        Raises: NotFound, InvalidRequest (a sandbox uses it, or it comes with Sandgate).
        """
        parsed = parse_reference(reference)
        template = await self._owned(team_id, reference)
        if template.kind == "snapshot" and parsed.tag is not None:
            tags = await self._store.tags(template.id)
            if parsed.tag not in {tag.tag for tag in tags}:
                raise _no_tag(template, parsed.tag)
            if len(tags) > 1:
                await self._store.remove_tags(template.id, [parsed.tag])
                return
        if await self._in_use(template.id):
            raise InvalidRequest(
                f"The template {template.name or template.id!r} cannot be deleted while sandboxes use it,"
                " running or paused. End them first."
            )
        await self.builder.end(template.id)
        await self._store.delete_template(template.id)
        self.builder.sweep_soon()

    async def tags(self, team_id: str, reference: str) -> list[Tag]:
        """Newest first. Raises: NotFound, InvalidRequest."""
        template = await self._find(team_id, parse_reference(reference))
        return await self._store.tags(template.id)

    async def assign_tags(self, team_id: str, target: str, tags: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        """Let more tags lead to the build that `target` leads to; its id and the tags. Raises: NotFound."""
        wanted = tuple(dict.fromkeys(check_tag(tag) for tag in tags))
        if not wanted:
            raise InvalidRequest("tags: at least one is needed.")
        parsed = parse_reference(target)
        template = await self._owned(team_id, target)
        build = await self._tagged(template, parsed)
        await self._store.assign_tags(build, wanted, self._now())
        return build.id, wanted

    async def remove_tags(self, team_id: str, name: str, tags: Sequence[str]) -> None:
        """All of them or, if one is not there, none. Raises: NotFound, InvalidRequest."""
        wanted = tuple(dict.fromkeys(check_tag(tag) for tag in tags))
        if DEFAULT_TAG in wanted:
            raise InvalidRequest(f"The tag {DEFAULT_TAG!r} cannot be removed; delete the template instead.")
        template = await self._owned(team_id, name)
        if missing := await self._store.remove_tags(template.id, wanted):
            raise _no_tag(template, min(missing))

    # -- snapshots --------------------------------------------------------------------------------------------------

    async def plan_snapshot(self, team_id: str, name: str | None) -> str:
        """What the image of a new snapshot is to be called; if it is not added within an hour, it is removed.

        Raises: InvalidRequest, as `add_snapshot`.
        """
        if name is not None:
            reference = self._own(team_id, parse_new_name(name))
            known = await self._store.find_template(team_id, reference.name, namespace=team_id)
            if known is not None and known.name == reference.name and known.kind != "snapshot":
                raise name_taken(known)
        return self.builder.image_of(str(uuid4()))

    def image_of_fork(self) -> str:
        """What the image of a new fork is to be called. Sandboxes have to be recorded with it before it is made."""
        return self.builder.image_of_fork(str(uuid4()))

    async def add_snapshot(
        self, team_id: str, *, sandbox_id: str, image: str, name: str | None, base: ResolvedTemplate
    ) -> Snapshot:
        """Record an image that was made of a sandbox's files; it is removed with the snapshot.

        `name` may have a tag; a snapshot of the same name and tag is replaced. Raises: InvalidRequest.
        """
        reference = self._own(team_id, parse_new_name(name)) if name is not None else None
        now = self._now()
        template = replace(
            _new_template(team_id, "snapshot", reference.name if reference else None, now), sandbox_id=sandbox_id
        )
        build = Build(
            id=str(uuid4()),
            template_id=template.id,
            status=BuildStatus.READY,
            created_at=now,
            started_at=now,
            finished_at=now,
            wanted_tags=wanted_tags(reference, ()) if reference else (DEFAULT_TAG,),
            image=image,
            cpus=base.cpus,
            memory_mib=base.memory_mib,
            has_gateway=base.has_gateway,
            runs=Runs(
                user=base.user or Runs().user,
                workdir=base.workdir,
                envs=base.envs,
                start_command=base.start_command,
                ready_command=base.ready_command,
            ),
        )
        template, build = await self._store.add_build(template, build)
        return _snapshot(template, build.wanted_tags[0], sandbox_id, now)

    async def list_snapshots(
        self,
        team_id: str,
        sandbox_id: str | None = None,
        name: str | None = None,
        *,
        limit: int = 100,
        cursor: str | None = None,
    ) -> SnapshotPage:
        """Newest first. Raises: InvalidRequest (the name's form, or a cursor that was not given out)."""
        parsed = parse_reference(name) if name is not None else None
        rows = await self._store.list_snapshots(
            team_id,
            sandbox_id=sandbox_id,
            name=parsed.name if parsed else None,
            tag=parsed.tag if parsed else None,
            before=_read_cursor(cursor) if cursor else None,
            limit=limit + 1,
        )
        page = rows[:limit]
        return SnapshotPage(
            snapshots=tuple(_snapshot(t, tag.tag, t.sandbox_id or "", tag.created_at) for t, tag in page),
            cursor=_make_cursor(page[-1][1]) if len(rows) > limit else None,
        )

    # -- helpers ----------------------------------------------------------------------------------------------------

    async def _find(self, team_id: str, reference: Reference) -> Template:
        template = await self._store.find_template(team_id, reference.name, namespace=reference.namespace)
        if template is None:
            raise NotFound(
                f"There is no template {str(reference)!r}, or it is another team's. GET /templates lists yours."
            )
        return template

    async def _owned(self, team_id: str, reference: str) -> Template:
        parsed = parse_reference(reference)
        if parsed.name in BUILT_IN:
            raise InvalidRequest(f"The template {parsed.name!r} comes with Sandgate and cannot be changed.")
        template = await self._find(team_id, parsed)
        if template.team_id != team_id:
            raise NotFound(f"The template {str(parsed)!r} is another team's.")
        return template

    async def _build(self, template: Template, build_id: str) -> Build:
        build = await self._store.find_build(template.id, build_id.lower())
        if build is None:
            raise NotFound(f"The template {template.name or template.id!r} has no build {build_id[:40]!r}.")
        return build

    async def _tagged(self, template: Template, reference: Reference) -> Build:
        tag = reference.tag or DEFAULT_TAG
        build = await self._store.tagged_build(template.id, tag)
        if build is None:
            tags = [found.tag for found in await self._store.tags(template.id)]
            hint = f"It has: {', '.join(tags)}." if tags else "None of its builds is ready."
            raise NotFound(f"The template {template.name or template.id!r} has no tag {tag!r}. {hint}")
        return build

    def _own(self, team_id: str, reference: Reference) -> Reference:
        if reference.namespace not in (None, team_id):
            raise InvalidRequest(f"The namespace {reference.namespace!r} is not that of your team, {team_id!r}.")
        return reference


def _new_template(team_id: str, kind: str, name: str | None, now: datetime) -> Template:
    return Template(
        id=new_template_id(),
        team_id=team_id,
        kind="snapshot" if kind == "snapshot" else "template",
        name=name,
        public=False,
        created_at=now,
        updated_at=now,
    )


def _view(template: Template, builds: Sequence[Build]) -> TemplateView:
    newest = next((build for build in builds if build.status is BuildStatus.READY), builds[0])
    return TemplateView(template=template, build=newest, builds=tuple(builds), namespace=template.team_id)


def built_in_template(name: str) -> ResolvedTemplate:
    """A template that comes with Sandgate: `BASE_TEMPLATE` or `GATEWAY_TEMPLATE`."""
    return ResolvedTemplate(
        template_id=name,
        build_id=_BUILT_IN_BUILD,
        name=name,
        image=None,
        has_gateway=name == GATEWAY_TEMPLATE,
        user=None,
        workdir=None,
        envs={},
        start_command=None,
        ready_command=None,
        cpus=None,
        memory_mib=None,
        kind="built-in",
    )


def _built_in_view(name: str) -> TemplateView:
    template = Template(
        id=name, team_id="", kind="built-in", name=name, public=True, created_at=_FIRST_DAY, updated_at=_FIRST_DAY
    )
    build = Build(id=_BUILT_IN_BUILD, template_id=name, status=BuildStatus.READY, created_at=_FIRST_DAY)
    return TemplateView(template=template, build=build, builds=(build,), namespace="")


def _snapshot(template: Template, tag: str, sandbox_id: str, created_at: datetime) -> Snapshot:
    return Snapshot(
        snapshot_id=f"{template.name or template.id}:{tag}",
        names=(f"{template.name}:{tag}",) if template.name else (),
        sandbox_id=sandbox_id,
        created_at=created_at,
    )


def _no_tag(template: Template, tag: str) -> NotFound:
    return NotFound(f"The template {template.name or template.id!r} has no tag {tag!r}.")


def _make_cursor(last: Tag) -> str:
    return base64.urlsafe_b64encode(f"{rfc3339(last.created_at)}__{last.build_id}".encode()).decode()


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        moment, separator, build_id = base64.urlsafe_b64decode(cursor).decode().partition("__")
        if not separator:
            raise ValueError(cursor)
        return datetime.fromisoformat(moment).astimezone(UTC), build_id
    except (binascii.Error, ValueError, OverflowError) as error:
        raise InvalidRequest("nextToken is not one that this server gave out.") from error
