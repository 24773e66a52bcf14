"""Volumes: files that outlive sandboxes. What is in one is served by `volume_content`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from app.api.auth import CurrentTeam
from app.api.dependencies import SettingsOfApi, SettingsOfApiDep, VolumesDep
from app.api.errors import describe_errors
from app.volumes import Volume

router = APIRouter(tags=["volumes"])

VolumeId = Annotated[str, Path(alias="volumeID", pattern="^[a-z0-9_]{1,32}$")]


class NewVolume(BaseModel):
    name: str = Field(
        description="Unique in the team. `volumeMounts` names it.",
        json_schema_extra={"pattern": "^[a-zA-Z0-9_-]{1,128}$"},
    )


class ListedVolume(BaseModel):
    volume_id: str = Field(serialization_alias="volumeID")
    name: str


class VolumeAnswer(ListedVolume):
    token: str = Field(description="Bearer token for the volume's content, and for nothing else.")
    domain: str | None = Field(
        None, description="The content is served by `https://api.<domain>`, unless the client was told of a URL."
    )


@router.post(
    "/volumes", status_code=201, response_model_exclude_none=True, responses=describe_errors(400, 500, 503, 507)
)
async def create_volume(
    body: NewVolume, team: CurrentTeam, volumes: VolumesDep, settings: SettingsOfApiDep
) -> VolumeAnswer:
    """Make an empty volume."""
    return _answer(await volumes.create(team.id, body.name), settings)


@router.get("/volumes", responses=describe_errors())
async def list_volumes(team: CurrentTeam, volumes: VolumesDep) -> list[ListedVolume]:
    """The team's volumes, oldest first."""
    return [ListedVolume(volume_id=found.id, name=found.name) for found in await volumes.list(team.id)]


@router.get("/volumes/{volumeID}", response_model_exclude_none=True, responses=describe_errors(400, 404))
async def get_volume(
    volume_id: VolumeId, team: CurrentTeam, volumes: VolumesDep, settings: SettingsOfApiDep
) -> VolumeAnswer:
    """A volume, with the token for its content."""
    return _answer(await volumes.get(team.id, volume_id), settings)


@router.delete("/volumes/{volumeID}", status_code=204, responses=describe_errors(400, 404, 409, 500, 503, 507))
async def delete_volume(volume_id: VolumeId, team: CurrentTeam, volumes: VolumesDep) -> Response:
    """Remove a volume and everything in it. Not while a sandbox has it."""
    await volumes.delete(team.id, volume_id)
    return Response(status_code=204)


def _answer(volume: Volume, settings: SettingsOfApi) -> VolumeAnswer:
    return VolumeAnswer(volume_id=volume.id, name=volume.name, token=volume.token, domain=settings.sandbox_domain)
