"""The files of a volume, for whoever has its token: the volume content API of E2B's SDKs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Literal

import httpx
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app.api.dependencies import VolumeContentDep, VolumesDep
from app.api.errors import describe_errors
from app.api.volumes import VolumeId

router = APIRouter(prefix="/volumecontent/{volumeID}", tags=["volumes"])

_bearer = HTTPBearer(auto_error=False, scheme_name="VolumeToken", description="The volume's own token.")

_PASSED_ON = ("range", "if-range", "accept-encoding")
_ANSWERED_WITH = (
    "accept-ranges",
    "content-disposition",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "last-modified",
    "vary",
)
_UPLOAD_SILENCE_S = 300.0
_BINARY = {"schema": {"type": "string", "format": "binary"}}

EntryPath = Annotated[str, Query(min_length=1, max_length=4096, description="From the root of the volume.")]
Id = Annotated[int | None, Query(ge=0, le=(1 << 32) - 2)]
Mode = Annotated[int | None, Query(ge=0, le=0o7777, description="Permission bits, as a number.")]
Force = Annotated[bool | None, Query()]


class VolumeEntryStat(BaseModel):
    name: str
    type: Literal["file", "directory", "symlink", "unknown"]
    path: str
    size: int
    mode: int = Field(description="Permission bits, as a number.")
    uid: int
    gid: int
    atime: str = Field(description="RFC 3339, as the other times.")
    mtime: str
    ctime: str
    target: str | None = Field(None, description="Of a symbolic link.")


class PathUpdate(BaseModel):
    """What is left out stays as it is."""

    uid: int | None = Field(None, ge=0, le=(1 << 32) - 2)
    gid: int | None = Field(None, ge=0, le=(1 << 32) - 2)
    mode: int | None = Field(None, ge=0, le=0o7777)


async def _admitted(
    volume_id: VolumeId,
    volumes: VolumesDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> str:
    await volumes.admit(volume_id, None if bearer is None else bearer.credentials)
    return volume_id


AdmittedVolumeId = Annotated[str, Depends(_admitted)]


@router.get("/path", response_model_exclude_none=True, responses=describe_errors(400, 404, 500, 503, 507))
async def stat_path(volume_id: AdmittedVolumeId, content: VolumeContentDep, path: EntryPath) -> VolumeEntryStat:
    """What is at a path; a link is not followed."""
    async with content.ask(volume_id, "GET", "/path", {"path": path}) as answer:
        return await _entry(answer)


@router.patch("/path", response_model_exclude_none=True, responses=describe_errors(400, 404, 500, 503, 507))
async def update_path(
    volume_id: AdmittedVolumeId, content: VolumeContentDep, path: EntryPath, body: PathUpdate
) -> VolumeEntryStat:
    """Change owner, group or mode."""
    query = _query(path, body.model_dump())
    async with content.ask(volume_id, "PATCH", "/path", query) as answer:
        return await _entry(answer)


@router.delete("/path", status_code=204, responses=describe_errors(400, 404, 500, 503, 507))
async def remove_path(volume_id: AdmittedVolumeId, content: VolumeContentDep, path: EntryPath) -> Response:
    """Remove a file, or a directory with everything in it."""
    async with content.ask(volume_id, "DELETE", "/path", {"path": path}):
        return Response(status_code=204)


@router.get("/dir", response_model_exclude_none=True, responses=describe_errors(400, 404, 500, 503, 507))
async def list_directory(
    volume_id: AdmittedVolumeId,
    content: VolumeContentDep,
    path: EntryPath,
    depth: Annotated[int, Query(ge=0, le=10, description="How many levels; 0 means 1.")] = 1,
) -> list[VolumeEntryStat]:
    """What is in a directory: parents before children, names in order."""
    async with content.ask(volume_id, "GET", "/dir", _query(path, {"depth": depth})) as answer:
        await answer.aread()
        return [VolumeEntryStat.model_validate(entry) for entry in answer.json()]


@router.post(
    "/dir", status_code=201, response_model_exclude_none=True, responses=describe_errors(400, 404, 409, 500, 503, 507)
)
async def make_directory(
    volume_id: AdmittedVolumeId,
    content: VolumeContentDep,
    path: EntryPath,
    uid: Id = None,
    gid: Id = None,
    mode: Mode = None,
    force: Force = None,
) -> VolumeEntryStat:
    """Make a directory, mode 0777 unless said otherwise; with `force` also its parents, and it may be there."""
    query = _query(path, {"uid": uid, "gid": gid, "mode": mode, "force": force})
    async with content.ask(volume_id, "POST", "/dir", query) as answer:
        return await _entry(answer)


@router.get(
    "/file",
    response_class=Response,
    responses=describe_errors(400, 404, 416, 500, 503, 507)
    | {
        200: {"description": "The file.", "content": {"application/octet-stream": _BINARY}},
        206: {"description": "The part that `Range` asked for.", "content": {"application/octet-stream": _BINARY}},
    },
)
async def read_file(
    volume_id: AdmittedVolumeId, content: VolumeContentDep, path: EntryPath, request: Request
) -> Response:
    """A file's bytes, or a part of them by `Range`."""
    headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
    return _PassedOn(content.ask(volume_id, "GET", "/file", {"path": path}, headers=headers))


@router.put(
    "/file",
    status_code=201,
    response_model=VolumeEntryStat,
    response_model_exclude_none=True,
    responses=describe_errors(400, 404, 409, 500, 503, 507),
    openapi_extra={"requestBody": {"content": {"application/octet-stream": _BINARY}}},
)
async def write_file(
    volume_id: AdmittedVolumeId,
    content: VolumeContentDep,
    path: EntryPath,
    request: Request,
    uid: Id = None,
    gid: Id = None,
    mode: Mode = None,
    force: Force = None,
) -> VolumeEntryStat | Response:
    """Make a file, mode 0666 unless said otherwise; with `force` also its parents, and over one that is there."""
    query = _query(path, {"uid": uid, "gid": gid, "mode": mode, "force": force})
    try:
        async with content.ask(volume_id, "PUT", "/file", query, body=_body(request)) as answer:
            return await _entry(answer)
    except (ClientDisconnect, TimeoutError):
        return Response(status_code=400)  # nobody reads it


class _PassedOn(Response):
    """Answers with the head and the bytes of another answer, as they come."""

    def __init__(self, asking: AbstractAsyncContextManager[httpx.Response]) -> None:
        super().__init__()
        self._asking = asking

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._asking as answer:
            headers = {name: answer.headers[name] for name in _ANSWERED_WITH if name in answer.headers}
            await StreamingResponse(answer.aiter_raw(), answer.status_code, headers)(scope, receive, send)


async def _body(request: Request) -> AsyncIterator[bytes]:
    """Raises: ClientDisconnect, TimeoutError for a client that sends nothing for 5 minutes."""
    pieces = request.stream()
    while True:
        async with asyncio.timeout(_UPLOAD_SILENCE_S):
            piece = await anext(pieces, None)
        if piece is None:
            return
        yield piece


async def _entry(answer: httpx.Response) -> VolumeEntryStat:
    return VolumeEntryStat.model_validate_json(await answer.aread())


def _query(path: str, wishes: Mapping[str, int | bool | None]) -> dict[str, str]:
    return {"path": path} | {name: str(wish).lower() for name, wish in wishes.items() if wish is not None}
