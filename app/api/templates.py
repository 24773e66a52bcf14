"""The template resources of the E2B contract: building, naming and tagging, listing, deleting.

A template is named by its id, its name, or `<namespace>/<name>`; an encoded slash reaches us as a plain one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Body, Path, Query, Request, Response

from app.api.auth import CurrentTeam
from app.api.dependencies import SettingsOfApiDep, TemplateServiceDep
from app.api.errors import describe_errors
from app.api.template_bodies import (
    AliasAnswer,
    AssignedTags,
    AssignTags,
    BuildInfo,
    BuildLogs,
    ChangedTemplate,
    FailureReason,
    FileUpload,
    ListedBuild,
    ListedTemplate,
    LogEntry,
    NewBuild,
    NewBuildAnswer,
    RemoveTags,
    StartBuild,
    Status,
    TagAnswer,
    TemplateChange,
    TemplateDetail,
)
from app.errors import InvalidRequest
from app.ids_and_time import rfc3339
from app.templates.models import Build, BuildStatus, LogLine, TemplateView
from app.templates.planning import BuildRequest, Step
from app.templates.service import LOG_PAGE

_ENVD_VERSION = "0.6.13"
_DISK_MB = 10240

router = APIRouter(tags=["templates"])

TemplateRef = Annotated[str, Path(alias="templateID")]
TemplateAlias = Annotated[str, Path(alias="alias")]
FilesHash = Annotated[str, Path(alias="hash")]
BuildId = Annotated[str, Path(alias="buildID")]


@router.post("/v3/templates", status_code=202, responses=describe_errors(400, 413))
@router.post("/v2/templates", status_code=202, responses=describe_errors(400, 413))
async def request_build(body: NewBuild, team: CurrentTeam, templates: TemplateServiceDep) -> NewBuildAnswer:
    """Name a template and get a build for it. Files and steps are sent to that build."""
    name = body.name or body.alias
    if not name:
        raise InvalidRequest("name: a template needs one.")
    template, build = await templates.request_build(
        team.id, name, tags=body.tags or (), cpus=body.cpu_count, memory_mib=body.memory_mb
    )
    aliases = [template.name] if template.name else []
    return NewBuildAnswer(
        template_id=template.id,
        build_id=build.id,
        public=template.public,
        names=aliases,
        tags=list(build.wanted_tags),
        aliases=aliases,
    )


@router.get("/templates/{templateID:path}/files/{hash}", status_code=201, responses=describe_errors(400, 404))
async def get_upload_link(
    template: TemplateRef,
    files_hash: FilesHash,
    team: CurrentTeam,
    templates: TemplateServiceDep,
    settings: SettingsOfApiDep,
) -> FileUpload:
    """Whether the files of a COPY step are here already, and where to send them."""
    present, query = await templates.upload_link(team.id, template, files_hash)
    path = f"/templates/{quote(template, safe='')}/files/{quote(files_hash, safe='')}"
    return FileUpload(present=present, url=f"{settings.public_url}{path}?{urlencode(query)}")


@router.put("/templates/{templateID:path}/files/{hash}", responses=describe_errors(400, 413, 507))
async def upload_files(
    template: TemplateRef,
    files_hash: FilesHash,
    request: Request,
    templates: TemplateServiceDep,
    team: Annotated[str, Query()],
    expires: Annotated[str, Query(pattern=r"^\d{1,12}$")],
    signature: Annotated[str, Query(max_length=64)],
) -> Response:
    """Send a tar of files to the address that was given out for them."""
    await templates.receive_files(files_hash, team=team, expires=expires, signature=signature, body=request.stream())
    return Response(status_code=200)


@router.post(
    "/v2/templates/{templateID:path}/builds/{buildID}", status_code=202, responses=describe_errors(400, 404, 413)
)
async def start_build(
    template: TemplateRef, build_id: BuildId, body: StartBuild, team: CurrentTeam, templates: TemplateServiceDep
) -> Response:
    """Send the steps of a build, which begins then."""
    registry = body.from_image_registry
    plan = BuildRequest(
        from_image=body.from_image or None,
        from_template=body.from_template or None,
        login=registry.login() if registry is not None else None,
        force=bool(body.force),
        steps=tuple(
            Step(kind=step.type.upper(), args=tuple(step.args), files_hash=step.files_hash, force=bool(step.force))
            for step in body.steps or ()
        ),
        start_command=body.start_cmd or None,
        ready_command=body.ready_cmd or None,
    )
    await templates.start_build(team.id, template, build_id, plan)
    return Response(status_code=202)


@router.get(
    "/templates/{templateID:path}/builds/{buildID}/status",
    response_model_exclude_none=True,  # the SDKs read null as an object
    responses=describe_errors(400, 404),
)
async def get_build_status(
    template: TemplateRef,
    build_id: BuildId,
    team: CurrentTeam,
    templates: TemplateServiceDep,
    logs_offset: Annotated[int, Query(alias="logsOffset", ge=0, le=2**31 - 1)] = 0,
    limit: Annotated[int, Query(ge=0, le=LOG_PAGE)] = LOG_PAGE,
) -> BuildInfo:
    """How a build is doing, and its log from `logsOffset` on; an answer without entries ends the log."""
    build, log = await templates.build_status(team.id, template, build_id, offset=logs_offset, limit=limit)
    failure = build.failure
    return BuildInfo(
        template_id=build.template_id,
        build_id=build.id,
        status=_status(build.status),
        log_entries=[_entry(line) for line in log],
        reason=None
        if failure is None
        else FailureReason(
            message=failure.message, step=failure.step, log_entries=[_entry(line) for line in failure.log]
        ),
    )


@router.get(
    "/templates/{templateID:path}/builds/{buildID}/logs",
    response_model_exclude_none=True,
    responses=describe_errors(400, 404),
)
async def get_build_logs(
    template: TemplateRef,
    build_id: BuildId,
    team: CurrentTeam,
    templates: TemplateServiceDep,
    cursor: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    limit: Annotated[int, Query(ge=0, le=LOG_PAGE)] = LOG_PAGE,
) -> BuildLogs:
    """The log of a build from the entry `cursor` on."""
    _, log = await templates.build_status(team.id, template, build_id, offset=cursor, limit=limit)
    return BuildLogs(logs=[_entry(line) for line in log])


@router.post("/templates/tags", status_code=201, responses=describe_errors(400, 404))
async def assign_tags(body: AssignTags, team: CurrentTeam, templates: TemplateServiceDep) -> AssignedTags:
    """Let more tags lead to a build."""
    build_id, tags = await templates.assign_tags(team.id, body.target, body.tags)
    return AssignedTags(tags=list(tags), build_id=build_id)


@router.delete("/templates/tags", status_code=204, responses=describe_errors(400, 404))
async def remove_tags(
    body: Annotated[RemoveTags, Body()], team: CurrentTeam, templates: TemplateServiceDep
) -> Response:
    """Remove tags; the build they led to stays while another tag leads to it."""
    await templates.remove_tags(team.id, body.name, body.tags)
    return Response(status_code=204)


@router.get("/templates/{templateID:path}/tags", responses=describe_errors(400, 404))
async def get_tags(template: TemplateRef, team: CurrentTeam, templates: TemplateServiceDep) -> list[TagAnswer]:
    """Tags of a template and the builds they lead to, newest first."""
    return [
        TagAnswer(tag=tag.tag, build_id=tag.build_id, created_at=rfc3339(tag.created_at))
        for tag in await templates.tags(team.id, template)
    ]


@router.get("/templates/aliases/{alias:path}", responses=describe_errors(400, 404))
async def find_alias(alias: TemplateAlias, team: CurrentTeam, templates: TemplateServiceDep) -> AliasAnswer:
    """Whether there is a template of this name."""
    view = await templates.get(team.id, alias)
    return AliasAnswer(template_id=view.template.id, public=view.template.public)


@router.get("/templates", responses=describe_errors())
@router.get("/v2/templates", responses=describe_errors())
async def list_templates(
    team: CurrentTeam, templates: TemplateServiceDep, settings: SettingsOfApiDep
) -> list[ListedTemplate]:
    """The team's templates, newest first, and those that come with Sandgate."""
    return [ListedTemplate(**_listed(view, settings.sandbox_size)) for view in await templates.templates(team.id)]


@router.get(
    "/templates/{templateID:path}",
    response_model_exclude_unset=True,  # a build that is not finished has no time of that
    responses=describe_errors(400, 404),
)
async def get_template(
    template: TemplateRef, team: CurrentTeam, templates: TemplateServiceDep, settings: SettingsOfApiDep
) -> TemplateDetail:
    """A template with all its builds."""
    view = await templates.get(team.id, template)
    size = settings.sandbox_size
    return TemplateDetail(**_listed(view, size), builds=[_listed_build(build, size) for build in view.builds])


@router.patch("/v2/templates/{templateID:path}", responses=describe_errors(400, 404))
@router.patch("/templates/{templateID:path}", responses=describe_errors(400, 404))
async def change_template(
    template: TemplateRef, body: TemplateChange, team: CurrentTeam, templates: TemplateServiceDep
) -> ChangedTemplate:
    """Publish a template to all teams of this server, or take that back."""
    view = await (
        templates.get(team.id, template)
        if body.public is None
        else templates.set_public(team.id, template, body.public)
    )
    return ChangedTemplate(names=_names(view))


@router.delete("/templates/{templateID:path}", status_code=204, responses=describe_errors(400, 404))
async def delete_template(template: TemplateRef, team: CurrentTeam, templates: TemplateServiceDep) -> Response:
    """Delete a template or a snapshot. Refused while a sandbox uses it."""
    await templates.delete(team.id, template)
    return Response(status_code=204)


def _names(view: TemplateView) -> list[str]:
    """With the namespace that other teams need where they may use it."""
    if view.template.name is None:
        return []
    return [f"{view.namespace}/{view.template.name}" if view.template.public and view.namespace else view.template.name]


def _listed(view: TemplateView, size: tuple[int, int]) -> Mapping[str, Any]:
    template = view.template
    return {
        "template_id": template.id,
        "build_id": view.build.id,
        "cpu_count": view.build.cpus or size[0],
        "memory_mb": view.build.memory_mib or size[1],
        "disk_size_mb": _DISK_MB,
        "public": template.public,
        "created_by": None,
        "envd_version": _ENVD_VERSION,
        "aliases": [template.name] if template.name else [],
        "names": _names(view),
        "created_at": rfc3339(template.created_at),
        "updated_at": rfc3339(template.updated_at),
        "last_spawned_at": None if template.last_spawned_at is None else rfc3339(template.last_spawned_at),
        "spawn_count": template.spawn_count,
        "build_count": len(view.builds),
        "build_status": _status(view.build.status),
        "is_default": template.kind == "built-in",
    }


def _listed_build(build: Build, size: tuple[int, int]) -> ListedBuild:
    finished = {} if build.finished_at is None else {"finished_at": rfc3339(build.finished_at)}
    return ListedBuild(
        build_id=build.id,
        status=_status(build.status),
        created_at=rfc3339(build.created_at),
        updated_at=rfc3339(build.finished_at or build.started_at or build.created_at),
        cpu_count=build.cpus or size[0],
        memory_mb=build.memory_mib or size[1],
        disk_size_mb=_DISK_MB,
        envd_version=_ENVD_VERSION,
        **finished,
    )


def _entry(line: LogLine) -> LogEntry:
    return LogEntry(timestamp=rfc3339(line.at), message=line.message, level=line.level, step=line.step)


def _status(status: BuildStatus) -> Status:
    return status.value
