"""Which MCP servers can be named in `mcp`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.auth import CurrentTeam
from app.api.dependencies import CatalogDep
from app.api.errors import describe_errors
from app.catalog import describe

router = APIRouter(prefix="/api/v1", tags=["catalog"])


class CatalogItem(BaseModel):
    key: str = Field(description="What to write in `mcp`.")
    name: str
    title: str
    description: str
    type: str
    placement: str = Field(description="`gateway`, `workspace` or `container`: where it runs.")
    properties: dict[str, dict[str, Any]] = Field(description="Its options; credentials carry `secret: true`.")
    required: list[str]
    homepage: str | None
    category: str | None
    verified: Any = Field(description="Whether this version was seen to start and list its tools.")


class CatalogPage(BaseModel):
    items: list[CatalogItem]


@router.get("/catalog", responses=describe_errors())
async def list_catalog(_team: CurrentTeam, catalog: CatalogDep) -> CatalogPage:
    """Every MCP server that can be named in `mcp`, with its options."""
    return CatalogPage(items=[CatalogItem.model_validate(describe(definition)) for definition in catalog])
