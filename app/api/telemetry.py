"""What sandboxes use of what they have, and their logs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from app.api.auth import CurrentTeam
from app.api.dependencies import MetricsDep, SandboxLogsDep
from app.api.errors import describe_errors
from app.api.sandboxes import SandboxId
from app.errors import InvalidRequest
from app.ids_and_time import rfc3339
from app.sandboxes.journal import Level, LogEntry
from app.sandboxes.telemetry import Sample

router = APIRouter(tags=["telemetry"])

_MOST_SANDBOXES = 100
_LATEST_S = 253402300799
"""The last second of the year 9999, which is as far as a moment can be told."""

UnixSeconds = Annotated[int | None, Query(ge=0, le=_LATEST_S, description="Unix seconds.")]
UnixMilliseconds = Annotated[int | None, Query(ge=0, le=_LATEST_S * 1000, description="Unix milliseconds.")]
LogLimit = Annotated[int, Query(ge=0, le=1000)]


class SandboxMetric(BaseModel):
    timestamp: str = Field(description="RFC 3339")
    timestamp_unix: int = Field(serialization_alias="timestampUnix")
    cpu_count: int = Field(serialization_alias="cpuCount")
    cpu_used_pct: float = Field(serialization_alias="cpuUsedPct", description="Of all of them together.")
    mem_used: int = Field(serialization_alias="memUsed", description="Bytes, as the sizes below.")
    mem_total: int = Field(serialization_alias="memTotal")
    mem_cache: int = Field(serialization_alias="memCache")
    disk_used: int = Field(serialization_alias="diskUsed")
    disk_total: int = Field(serialization_alias="diskTotal")


class SandboxesWithMetrics(BaseModel):
    sandboxes: dict[str, SandboxMetric] = Field(description="The newest sample of each, by sandbox id.")


class SandboxLog(BaseModel):
    timestamp: str = Field(description="RFC 3339")
    line: str = Field(description="JSON: `message`, `level` and fields.")


class SandboxLogEntry(BaseModel):
    timestamp: str = Field(description="RFC 3339")
    message: str
    level: Literal["debug", "info", "warn", "error"]
    fields: dict[str, str] = Field(description="`logger` is `sandgate`, `agent` or `gateway`.")


class SandboxLogs(BaseModel):
    logs: list[SandboxLog]
    log_entries: list[SandboxLogEntry] = Field(serialization_alias="logEntries")


class SandboxLogsV2(BaseModel):
    logs: list[SandboxLogEntry]


@router.get("/sandboxes/metrics", responses=describe_errors(400))
async def latest_metrics(
    team: CurrentTeam,
    metrics: MetricsDep,
    sandbox_ids: Annotated[str, Query(description="Ids with commas, at most 100.", max_length=8192)],
) -> SandboxesWithMetrics:
    """The newest sample of each sandbox. What is not there, or not the team's, is left out."""
    wanted = {sandbox_id.partition("-")[0] for sandbox_id in sandbox_ids.split(",") if sandbox_id}
    if len(wanted) > _MOST_SANDBOXES:
        raise InvalidRequest(f"sandbox_ids: at most {_MOST_SANDBOXES} sandboxes can be asked for at once.")
    latest = await metrics.latest(team.id, wanted)
    return SandboxesWithMetrics(sandboxes={sandbox_id: _metric(sample) for sandbox_id, sample in latest.items()})


@router.get("/sandboxes/{sandboxID}/metrics", responses=describe_errors(400, 404, 503))
async def sandbox_metrics(
    sandbox_id: SandboxId,
    team: CurrentTeam,
    metrics: MetricsDep,
    start: UnixSeconds = None,
    end: UnixSeconds = None,
) -> list[SandboxMetric]:
    """Samples of a sandbox, oldest first: one every 5 s while somebody asks, one a minute otherwise."""
    until = None if end is None else _moment(end) + timedelta(microseconds=999_999)
    since = None if start is None else _moment(start)
    samples = await metrics.of(team.id, sandbox_id, start=since, end=until)
    return [_metric(sample) for sample in samples]


@router.get("/sandboxes/{sandboxID}/logs", responses=describe_errors(400, 404))
async def sandbox_logs(
    sandbox_id: SandboxId,
    team: CurrentTeam,
    logs: SandboxLogsDep,
    start: UnixMilliseconds = None,
    limit: LogLimit = 1000,
) -> SandboxLogs:
    """What became of a sandbox, and what its agent and gateway say, oldest first. Also of one that has ended."""
    entries = _from(await logs.read(team.id, sandbox_id), start)[:limit]
    return SandboxLogs(
        logs=[SandboxLog(timestamp=rfc3339(entry.at), line=_line(entry)) for entry in entries],
        log_entries=[_log_entry(entry) for entry in entries],
    )


@router.get("/v2/sandboxes/{sandboxID}/logs", responses=describe_errors(400, 404))
async def sandbox_logs_v2(
    sandbox_id: SandboxId,
    team: CurrentTeam,
    logs: SandboxLogsDep,
    cursor: UnixMilliseconds = None,
    limit: LogLimit = 1000,
    direction: Literal["forward", "backward"] = "forward",
    level: Annotated[
        Literal["debug", "info", "warn", "error"] | None, Query(description="And the more severe ones.")
    ] = None,
    search: Annotated[str | None, Query(max_length=256, description="What the message contains.")] = None,
) -> SandboxLogsV2:
    """The same, from `cursor` on or, `backward`, from there into the past."""
    entries: Sequence[LogEntry] = await logs.read(team.id, sandbox_id)
    if direction == "forward":
        entries = _from(entries, cursor)
    elif cursor is not None:
        entries = [entry for entry in reversed(entries) if _unix_ms(entry.at) <= cursor]
    else:
        entries = entries[::-1]
    if level is not None:
        entries = [entry for entry in entries if entry.level >= Level[level.upper()]]
    if search:
        entries = [entry for entry in entries if search in entry.message]
    return SandboxLogsV2(logs=[_log_entry(entry) for entry in entries[:limit]])


def _metric(sample: Sample) -> SandboxMetric:
    return SandboxMetric(
        timestamp=rfc3339(sample.at),
        timestamp_unix=int(sample.at.timestamp()),
        cpu_count=sample.cpu_count,
        cpu_used_pct=sample.cpu_used_pct,
        mem_used=sample.memory_used,
        mem_total=sample.memory_total,
        mem_cache=sample.memory_cache,
        disk_used=sample.disk_used,
        disk_total=sample.disk_total,
    )


def _log_entry(entry: LogEntry) -> SandboxLogEntry:
    return SandboxLogEntry.model_validate(
        {
            "timestamp": rfc3339(entry.at),
            "message": entry.message,
            "level": entry.level.wire_name,
            "fields": dict(entry.fields),
        }
    )


def _line(entry: LogEntry) -> str:
    """What E2B's CLI parses: it needs `level`, and prints the rest."""
    return orjson.dumps({**entry.fields, "level": entry.level.wire_name, "message": entry.message}).decode()


def _from(entries: Sequence[LogEntry], start: int | None) -> Sequence[LogEntry]:
    return entries if start is None else [entry for entry in entries if _unix_ms(entry.at) >= start]


def _unix_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _moment(unix_s: int) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)
