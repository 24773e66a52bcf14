"""The teams a key may act for: always exactly its own."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.auth import CurrentTeam, PresentedKey
from app.api.errors import describe_errors

router = APIRouter(tags=["teams"])


class TeamAnswer(BaseModel):
    team_id: str = Field(serialization_alias="teamID")
    name: str
    api_key: str = Field(
        serialization_alias="apiKey", description="The key of this very request: only hashes of keys are stored."
    )
    is_default: bool = Field(serialization_alias="isDefault")


@router.get("/teams", responses=describe_errors())
async def list_teams(team: CurrentTeam, key: PresentedKey) -> list[TeamAnswer]:
    """The key's team."""
    return [TeamAnswer(team_id=team.id, name=team.name, api_key=key or "", is_default=True)]
