"""The template room as the control plane has it, on whatever engine a test brings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

from app.database import Database
from app.engines.interface import Engine, Limits
from app.errors import InvalidRequest
from app.settings import ROOT
from app.templates import TemplateService
from app.templates.base_images import BuildSettings, read_scripts
from app.templates.builder import ImagesOfForks, PrepareServer
from app.templates.service import InUse
from app.templates.store import TemplateStore
from app.templates.uploads import Uploads
from app.vault import Vault

NAMESPACE = "sandgate-test"
ALIASES = {"ubuntu:22.04": "foreign:1"}


async def nobody(template_id: str) -> bool:
    return False


async def no_images() -> set[str]:
    return set()


async def prepare_server(key: str, report: Callable[[str], None]) -> Sequence[str]:
    """`shot` runs from an image, `time` is a package, others are unknown."""
    if key not in ("time", "shot"):
        raise InvalidRequest(f"there is no MCP server {key!r} in the catalog.")
    report(f"{key} was asked for")
    return ["acme/shot:1"] if key == "shot" else []


def make_template_service(
    database: Database,
    engine: Engine,
    folder: Path,
    *,
    now: Callable[[], datetime],
    in_use: InUse = nobody,
    images_of_forks: ImagesOfForks = no_images,
    prepare: PrepareServer = prepare_server,
    timeout_s: float = 60,
    store_class: type[TemplateStore] = TemplateStore,
) -> TemplateService:
    """`folder` holds the encryption key and what is uploaded."""
    return TemplateService(
        store=store_class(database, Vault(folder / "encryption-key")),
        engine=engine,
        uploads=Uploads(folder / "template-files", largest_mib=1, now=now),
        settings=BuildSettings(
            namespace=NAMESPACE,
            workspace_image="workspace:1",
            aliases=ALIASES,
            limits=Limits(memory_mib=512, cpus=1.0, pids=100),
            capabilities=("CHOWN",),
            timeout_s=timeout_s,
            scripts=read_scripts(ROOT / "sandbox_images" / "templates"),
        ),
        in_use=in_use,
        images_of_forks=images_of_forks,
        prepare_server=prepare,
        now=now,
    )


@asynccontextmanager
async def building(templates: TemplateService) -> AsyncIterator[None]:
    """Let builds run; at the end those under way are cut off."""
    ready = asyncio.Event()
    running = asyncio.create_task(templates.builder.run(ready))
    await ready.wait()
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])
