"""What the routes of volumes, secrets, metrics and logs get handed, found on the application's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from app.sandboxes.journal import Journal
from app.sandboxes.sandbox_logs import SandboxLogs
from app.sandboxes.telemetry import Metrics
from app.secrets import Secrets
from app.volumes import VolumeContent, Volumes


@dataclass(frozen=True, slots=True)
class Resources:
    volumes: Volumes
    volume_content: VolumeContent
    secrets: Secrets
    metrics: Metrics
    journal: Journal
    logs: SandboxLogs


def _resources(request: Request) -> Resources:
    return cast(Resources, request.app.state.resources)


ResourcesDep = Annotated[Resources, Depends(_resources)]
