"""Liveness."""

from __future__ import annotations

from fastapi import APIRouter, Response

router = APIRouter(tags=["health"])


@router.get("/health", status_code=204)
async def health() -> Response:
    """204 once requests are served. Whether the container engine answers is `sandgate doctor`'s question."""
    return Response(status_code=204)
