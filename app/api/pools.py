"""How the pools of warm pods are doing."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.auth import CurrentTeam
from app.api.dependencies import SandboxServiceDep
from app.api.errors import describe_errors
from app.sandboxes.warm_pool import PoolStatus

router = APIRouter(tags=["telemetry"])


class PoolAnswer(BaseModel):
    templates: list[str] = Field(description="Whose sandboxes are made from these pods, as `SANDGATE_POOL` names them.")
    size: int
    wanted: int = Field(description="How many are to wait now: more than `size` while creates come fast.")
    waiting: int
    warm_creates: int = Field(serialization_alias="warmCreates", description="Since the server started, as below.")
    cold_creates: int = Field(serialization_alias="coldCreates", description="That came while none waited.")
    replaced: int = Field(description="Pods that died or did not answer any more while they waited.")


class PoolsAnswer(BaseModel):
    pools: list[PoolAnswer]


@router.get("/api/v1/pools", responses=describe_errors())
async def list_pools(team: CurrentTeam, service: SandboxServiceDep) -> PoolsAnswer:
    """The pools of this server. They are its operator's, and the same for every team."""
    return PoolsAnswer(pools=[_pool(pool) for pool in service.pools()])


def _pool(pool: PoolStatus) -> PoolAnswer:
    return PoolAnswer(
        templates=list(pool.templates),
        size=pool.size,
        wanted=pool.wanted,
        waiting=pool.waiting,
        warm_creates=pool.warm_creates,
        cold_creates=pool.cold_creates,
        replaced=pool.replaced,
    )
