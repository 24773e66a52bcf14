"""What routes get handed: the parts that `app.main` built, found on the application's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from app.accounts import Accounts
from app.catalog import Catalog
from app.catalog.importing import CatalogImporter
from app.sandboxes.sandbox_logs import SandboxLogs
from app.sandboxes.service import SandboxService
from app.sandboxes.telemetry import Metrics
from app.secrets import Secrets
from app.templates import TemplateService
from app.volumes import VolumeContent, Volumes


@dataclass(frozen=True, slots=True)
class SettingsOfApi:
    public_url: str
    """Without a trailing slash."""
    sandbox_domain: str | None
    sandbox_size: tuple[int, int]
    """CPUs and MiB of memory, where a template does not say otherwise."""


@dataclass(frozen=True, slots=True)
class Parts:
    accounts: Accounts
    service: SandboxService
    catalog: Catalog
    catalog_importer: CatalogImporter
    templates: TemplateService
    volumes: Volumes
    volume_content: VolumeContent
    secrets: Secrets
    metrics: Metrics
    logs: SandboxLogs
    settings: SettingsOfApi


def _parts(request: Request) -> Parts:
    return cast(Parts, request.app.state.parts)


def _accounts(request: Request) -> Accounts:
    return _parts(request).accounts


def _service(request: Request) -> SandboxService:
    return _parts(request).service


def _catalog(request: Request) -> Catalog:
    return _parts(request).catalog


def _catalog_importer(request: Request) -> CatalogImporter:
    return _parts(request).catalog_importer


def _templates(request: Request) -> TemplateService:
    return _parts(request).templates


def _volumes(request: Request) -> Volumes:
    return _parts(request).volumes


def _volume_content(request: Request) -> VolumeContent:
    return _parts(request).volume_content


def _secrets(request: Request) -> Secrets:
    return _parts(request).secrets


def _metrics(request: Request) -> Metrics:
    return _parts(request).metrics


def _logs(request: Request) -> SandboxLogs:
    return _parts(request).logs


def _settings(request: Request) -> SettingsOfApi:
    return _parts(request).settings


AccountsDep = Annotated[Accounts, Depends(_accounts)]
SandboxServiceDep = Annotated[SandboxService, Depends(_service)]
CatalogDep = Annotated[Catalog, Depends(_catalog)]
CatalogImporterDep = Annotated[CatalogImporter, Depends(_catalog_importer)]
TemplateServiceDep = Annotated[TemplateService, Depends(_templates)]
VolumesDep = Annotated[Volumes, Depends(_volumes)]
VolumeContentDep = Annotated[VolumeContent, Depends(_volume_content)]
SecretsDep = Annotated[Secrets, Depends(_secrets)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
SandboxLogsDep = Annotated[SandboxLogs, Depends(_logs)]
SettingsOfApiDep = Annotated[SettingsOfApi, Depends(_settings)]
