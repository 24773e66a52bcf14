"""Which MCP servers can be named in `mcp`, and the catalogs they come from."""

from __future__ import annotations

import base64
import binascii
from dataclasses import asdict
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import BaseModel, Field

from app.api.auth import CurrentTeam
from app.api.dependencies import CatalogDep, CatalogImporterDep
from app.api.errors import describe_errors
from app.catalog import Catalog, describe, describe_whole
from app.catalog.importing import Change, ImportReport
from app.catalog.sources import Source
from app.errors import InvalidRequest, NotFound

router = APIRouter(prefix="/api/v1/catalog", tags=["catalog"])

_PAGE = 100
_LARGEST_PAGE = 1000


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
    state: str = Field(description="`available`, or `refused`: in the catalog, and not run for the `reasons`.")
    reasons: list[str]
    notes: list[str] = Field(description="What works otherwise than its definition says.")


class CatalogPage(BaseModel):
    items: list[CatalogItem]
    nextCursor: str | None = Field(description="For the next page; null on the last.")  # noqa: N815 - the wire's name


class CatalogEntry(CatalogItem):
    source: str = Field(description="`shipped`, `own`, or the imported catalog it comes from.")
    aliases: list[str]
    tags: list[str]
    tools: list[dict[str, Any]] = Field(description="Tools as its catalog lists them; a sandbox tells the live ones.")
    manifest: dict[str, Any] = Field(description="The whole definition, as a file in `catalog/servers/` has it.")


class SourceItem(BaseModel):
    name: str
    title: str | None
    origin: str | None = Field(description="Null for a document that came in a request.")
    format: str
    digest: str = Field(description="`sha256:…` of the document.")
    pinned: bool = Field(description="Whether a refresh is refused that brings another document.")
    overrides: bool = Field(description="Whether its servers replace shipped ones of the same name.")
    importedAt: str  # noqa: N815 - the wire's name


class Reason(BaseModel):
    file: str
    entry: str
    field: str
    reason: str
    remedy: str = Field(description="What to do.")


class ChangeItem(BaseModel):
    added: list[str]
    removed: list[str]
    changed: dict[str, list[str]] = Field(description="Server -> the fields of its definition that differ.")


class ImportAnswer(BaseModel):
    catalog: SourceItem
    counts: dict[str, int] = Field(description="`servers`, `available`, `notRun`, `refused`, `shadowed`.")
    refused: list[Reason] = Field(description="Entries that were not taken over.")
    notRun: list[Reason] = Field(description="Entries that are in the catalog and refused when used.")  # noqa: N815
    shadowed: dict[str, str] = Field(description="Servers that are not used -> the catalog that has their name.")
    renamed: dict[str, str] = Field(description="Servers whose key another server has -> the key they got.")
    change: ChangeItem


class DiffAnswer(BaseModel):
    digest: str
    change: ChangeItem


class FromUrl(BaseModel):
    url: str


@router.get("", responses=describe_errors(400))
def list_catalog(
    _team: CurrentTeam,
    catalog: CatalogDep,
    q: Annotated[str | None, Query(max_length=500, description="Words to look for; each matches as a prefix.")] = None,
    limit: Annotated[int, Query(ge=1, le=_LARGEST_PAGE)] = _PAGE,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
) -> CatalogPage:
    """The MCP servers that can be named in `mcp`, with their options: all by their keys, or the best matches of `q`."""
    if q is None or not q.strip():
        definitions = list(catalog)
        after = _read_cursor(cursor, "after") if cursor else ""
        start = next((index for index, item in enumerate(definitions) if item.key > after), len(definitions))
    else:
        definitions = catalog.search(q)
        after = _read_cursor(cursor, "skip") if cursor else "0"
        start = int(after) if after.isascii() and after.isdigit() else len(definitions)
    page = definitions[start : start + limit]
    next_cursor: str | None = None
    if page and start + limit < len(definitions):
        next_cursor = _cursor("after", page[-1].key) if not (q and q.strip()) else _cursor("skip", str(start + limit))
    return CatalogPage(items=[CatalogItem.model_validate(describe(item)) for item in page], nextCursor=next_cursor)


@router.get("/servers/{key}", responses=describe_errors(404))
async def get_server(_team: CurrentTeam, catalog: CatalogDep, key: str) -> CatalogEntry:
    """Everything the catalog knows of one server."""
    entry = catalog.entry(key)
    if entry is None:
        raise _unknown(key, catalog)
    return CatalogEntry.model_validate({**describe_whole(entry.definition), "source": entry.source})


@router.get("/sources", responses=describe_errors())
async def list_sources(_team: CurrentTeam, importer: CatalogImporterDep) -> list[SourceItem]:
    """The imported catalogs, in the order in which later ones win."""
    return [_source(source) for source in await importer.sources()]


@router.post(
    "/imports",
    status_code=201,
    responses=describe_errors(400, 409, 413),
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {}, "application/yaml": {}}}},
)
async def import_catalog(
    _team: CurrentTeam,
    importer: CatalogImporterDep,
    request: Request,
    name: Annotated[str | None, Query(description="What to call the catalog; importing it again replaces it.")] = None,
    override: Annotated[bool, Query(description="Let its servers replace shipped ones of the same name.")] = False,
    digest: Annotated[str | None, Query(description="`sha256:…` that the document must have; pins it.")] = None,
) -> ImportAnswer:
    """Take over a catalog: the document itself as the body, YAML or JSON, or `{"url": "https://…"}`.

    A bad entry is reported and does not stop the others.
    """
    body = await request.body()
    if (url := _url_of(body)) is not None:
        report = await importer.import_origin(url, name=name, overrides=override, digest=digest)
    else:
        report = await importer.import_document(body, name=name, overrides=override, digest=digest)
    return _answer(report)


@router.post("/sources/{name}/refresh", responses=describe_errors(400, 404, 409))
async def refresh_source(_team: CurrentTeam, importer: CatalogImporterDep, name: str) -> ImportAnswer:
    """Take over what the catalog's origin holds now."""
    return _answer(await importer.refresh(name))


@router.get("/sources/{name}/diff", responses=describe_errors(400, 404))
async def diff_source(_team: CurrentTeam, importer: CatalogImporterDep, name: str) -> DiffAnswer:
    """What a refresh would change."""
    digest, change = await importer.diff(name)
    return DiffAnswer(digest=digest, change=_change(change))


@router.put("/sources/{name}/pin", responses=describe_errors(404, 409))
async def pin_source(
    _team: CurrentTeam,
    importer: CatalogImporterDep,
    name: str,
    digest: Annotated[str | None, Body(embed=True, description="By default the present one.")] = None,
) -> SourceItem:
    """Let no refresh bring another document."""
    return _source(await importer.pin(name, digest))


@router.delete("/sources/{name}/pin", responses=describe_errors(404))
async def unpin_source(_team: CurrentTeam, importer: CatalogImporterDep, name: str) -> SourceItem:
    """Let refreshes bring what the origin holds."""
    return _source(await importer.unpin(name))


@router.delete("/sources/{name}", status_code=204, responses=describe_errors(404))
async def remove_source(_team: CurrentTeam, importer: CatalogImporterDep, name: str) -> Response:
    """Take the catalog's servers away. Running sandboxes keep theirs."""
    await importer.remove(name)
    return Response(status_code=204)


def _unknown(key: str, catalog: Catalog) -> NotFound:
    nearest = " or ".join(map(repr, catalog.nearest_few(key)))
    hint = f" Did you mean {nearest}?" if nearest else ""
    return NotFound(f"There is no MCP server {key[:80]!r} in the catalog.{hint}")


def _url_of(body: bytes) -> str | None:
    """The URL, if the body is nothing but one."""
    if len(body) > 10_000:
        return None
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(given, dict) or given.keys() != {"url"}:
        return None
    if not isinstance(given["url"], str):
        raise InvalidRequest("url: expected text")
    return given["url"]


def _cursor(kind: str, position: str) -> str:
    return base64.urlsafe_b64encode(f"{kind}:{position}".encode()).decode()


def _read_cursor(cursor: str, kind: str) -> str:
    try:
        found, _, position = base64.urlsafe_b64decode(cursor).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        found, position = "", ""
    if found != kind:
        raise InvalidRequest("cursor: is not one that this list gave. Leave it out to begin again.")
    return position


def _source(source: Source) -> SourceItem:
    return SourceItem(
        name=source.name,
        title=source.title,
        origin=source.origin,
        format=source.format,
        digest=source.digest,
        pinned=source.pinned_digest is not None,
        overrides=source.overrides,
        importedAt=source.imported_at.isoformat().replace("+00:00", "Z"),
    )


def _change(change: Change) -> ChangeItem:
    return ChangeItem.model_validate(asdict(change), from_attributes=True)


def _answer(report: ImportReport) -> ImportAnswer:
    file = report.source.origin or report.source.name
    return ImportAnswer(
        catalog=_source(report.source),
        counts={
            "servers": report.servers,
            "available": report.servers - len(report.not_run),
            "notRun": len(report.not_run),
            "refused": len({refusal.entry for refusal in report.refused}),
            "shadowed": len(report.shadowed),
        },
        refused=[Reason(file=file, **asdict(refusal)) for refusal in report.refused],
        notRun=[
            Reason(file=file, entry=name, **asdict(objection))
            for name, objections in report.not_run.items()
            for objection in objections
        ],
        shadowed={item.name: item.by for item in report.shadowed},
        renamed=dict(report.renamed),
        change=_change(report.change),
    )
