"""Secrets of a team. Their values are taken and never given back."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field

from app.api.auth import CurrentTeam
from app.api.dependencies import SecretsDep
from app.api.errors import describe_errors
from app.api.wire import Asked
from app.ids_and_time import rfc3339
from app.secrets import Secret

router = APIRouter(tags=["secrets"])

SecretKey = Annotated[
    str, Path(alias="secretID", min_length=1, max_length=256, pattern=r"^[^\x00-\x1f]+$", description="Id or name.")
]


class NewSecret(Asked):
    name: str = Field(
        description="Unique in the team; kept in lower case.",
        json_schema_extra={"pattern": r"^[^{}/\x00-\x1f\x7f-\x9f]{1,256}$"},
    )
    value: str = Field(
        description="At most 8 KiB. No answer holds it.", json_schema_extra={"writeOnly": True, "minLength": 1}
    )
    metadata: dict[str, str] = Field(default_factory=dict, description="At most 32 entries and 8 KiB.")


class SecretUpdate(Asked):
    value: str = Field(
        description="Becomes the current version.", json_schema_extra={"writeOnly": True, "minLength": 1}
    )
    metadata: dict[str, str] | None = Field(None, description="Replaces what is there; left out, that stays.")


class SecretAnswer(BaseModel):
    secret_id: str = Field(serialization_alias="secretID")
    name: str
    current_version: int = Field(serialization_alias="currentVersion")
    metadata: dict[str, str]
    created_at: str = Field(serialization_alias="createdAt", description="RFC 3339")
    updated_at: str = Field(serialization_alias="updatedAt", description="RFC 3339")


@router.post("/secrets", status_code=201, responses=describe_errors(400, 409))
async def create_secret(body: NewSecret, team: CurrentTeam, secrets: SecretsDep) -> SecretAnswer:
    """Store a secret."""
    return _answer(await secrets.create(team.id, body.name, body.value, body.metadata))


@router.get("/secrets", responses=describe_errors(400))
async def list_secrets(
    response: Response,
    team: CurrentTeam,
    secrets: SecretsDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
    next_token: Annotated[str | None, Query(alias="nextToken", max_length=2048)] = None,
) -> list[SecretAnswer]:
    """The team's secrets by name; the header `X-Next-Token` is there if there are more."""
    page = await secrets.page(team.id, limit=limit, after=next_token)
    if page.next_token is not None:
        response.headers["X-Next-Token"] = page.next_token
    return [_answer(secret) for secret in page.secrets]


@router.get("/secrets/{secretID}", responses=describe_errors(400, 404))
async def get_secret(secret_key: SecretKey, team: CurrentTeam, secrets: SecretsDep) -> SecretAnswer:
    """What is known of a secret, its value apart."""
    return _answer(await secrets.get(team.id, secret_key))


@router.post("/secrets/{secretID}", responses=describe_errors(400, 404))
async def update_secret(
    secret_key: SecretKey, body: SecretUpdate, team: CurrentTeam, secrets: SecretsDep
) -> SecretAnswer:
    """Give a secret a new value."""
    return _answer(await secrets.update(team.id, secret_key, body.value, body.metadata))


@router.delete("/secrets/{secretID}", status_code=204, responses=describe_errors(400, 404))
async def delete_secret(secret_key: SecretKey, team: CurrentTeam, secrets: SecretsDep) -> Response:
    """Forget a secret, every version of it."""
    await secrets.delete(team.id, secret_key)
    return Response(status_code=204)


def _answer(secret: Secret) -> SecretAnswer:
    return SecretAnswer(
        secret_id=secret.id,
        name=secret.name,
        current_version=secret.version,
        metadata=dict(secret.metadata),
        created_at=rfc3339(secret.created_at),
        updated_at=rfc3339(secret.updated_at),
    )
