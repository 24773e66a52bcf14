"""`sandgate doctor`: what Sandgate needs from its surroundings, checked one by one, with what to do."""

from __future__ import annotations

import asyncio
import shutil

from app.catalog import CatalogError
from app.database import Database, DatabaseUnusableError
from app.edge.tls import Finding, check_domain
from app.engines.interface import Engine
from app.errors import EngineError
from app.home import HomeError, make_home
from app.main import database_url, make_catalog, make_engine, make_vault, sandbox_images
from app.secrets.at_rest import check_stored_secrets
from app.settings import Settings, SettingsError
from app.tls import local_ca_file
from app.vault import VaultError

_LEAST_FREE_GIB = 5
_GIB = 1024**3


async def diagnose(settings: Settings) -> list[Finding]:
    """All checks, in the order in which a failure explains later ones."""
    state = _state(settings)
    if not state.ok:
        return [state]  # without a home there is nothing to look at
    findings = [state, _disk(settings), await _database(settings), _catalog(settings)]
    try:
        tags = sandbox_images(settings)
        engine = make_engine(settings, tags)
    except (SettingsError, EngineError) as error:
        return [*findings, Finding(False, "settings", str(error), "Mend it; docs/operations.md tells what it may be.")]
    try:
        findings.append(await _engine(engine))
        if findings[-1].ok:
            findings += [
                await _image(engine, role, tag)
                for role, tag in (("base", tags.base), ("workspace", tags.workspace), ("gateway", tags.gateway))
            ]
            findings.append(await _guard(engine))
    finally:
        await engine.aclose()
    return findings + await _domain(settings)


def _state(settings: Settings) -> Finding:
    try:
        make_home(settings.home)
        make_vault(settings)
    except HomeError as error:
        return Finding(False, "state", str(error), f"Make {settings.home} writable, or set SANDGATE_HOME.")
    except VaultError as error:
        return Finding(False, "state", str(error), "Restore it from a backup; what is stored cannot be read without.")
    return Finding(True, "state", f"{settings.home}")


def _disk(settings: Settings) -> Finding:
    free_gib = shutil.disk_usage(settings.home).free / _GIB
    message = f"{free_gib:.0f} GiB free at {settings.home}"
    if free_gib < _LEAST_FREE_GIB:
        return Finding(
            False, "disk", message, f"Keep {_LEAST_FREE_GIB} GiB free; `docker system df` shows what uses it."
        )
    return Finding(True, "disk", message)


async def _database(settings: Settings) -> Finding:
    try:
        database = Database(database_url(settings))
        try:
            async with asyncio.timeout(10):
                await database.migrate()
                await check_stored_secrets(database, make_vault(settings))
        finally:
            await database.aclose()
    except VaultError as error:
        return Finding(
            False, "database", str(error), "Restore it from a backup; what is stored cannot be read without."
        )
    except (TimeoutError, DatabaseUnusableError) as error:
        return Finding(False, "database", str(error) or "no answer in 10 s", "Check SANDGATE_DATABASE_URL.")
    return Finding(True, "database", "answers, schema is current")


def _catalog(settings: Settings) -> Finding:
    try:
        return Finding(True, "catalog", f"{len(make_catalog(settings))} MCP servers")
    except CatalogError as error:
        return Finding(False, "catalog", str(error), "Mend or remove the file named.")


async def _engine(engine: Engine) -> Finding:
    try:
        info = await engine.check()
    except EngineError as error:
        return Finding(False, "engine", str(error), "Start the Docker Engine, or set DOCKER_HOST; `make run` does it.")
    return Finding(True, "engine", f"{info.name} {info.version}")


async def _image(engine: Engine, role: str, tag: str) -> Finding:
    if await engine.has_image(tag):
        return Finding(True, f"{role} image", tag)
    return Finding(False, f"{role} image", f"{tag} is not on the engine", "Run `sandgate images build`.")


async def _guard(engine: Engine) -> Finding:
    try:
        await engine.prepare_networks()
    except EngineError as error:
        return Finding(
            False, "network", str(error), "Sandboxes are not started without these rules; see docs/security.md."
        )
    return Finding(True, "network", "sandboxes are kept from this host, from each other and from link-local addresses")


async def _domain(settings: Settings) -> list[Finding]:
    if settings.sandbox_domain is None:
        return [Finding(True, "sandbox domain", "none set; sandboxes are reached by path and by routing headers")]
    return await check_domain(settings.sandbox_domain, ca_file=local_ca_file(settings))
