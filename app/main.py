"""Builds the control plane. The only module that names every concrete class."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.accounts import Accounts
from app.api.application import make_api
from app.api.dependencies import Parts, SettingsOfApi
from app.catalog import Catalog
from app.catalog.importing import CatalogImporter
from app.catalog.sources import SourceStore
from app.database import Database, DatabaseUnusableError, claim_database
from app.edge.edge import Edge
from app.engines.docker_engine import DockerEngine
from app.engines.images import ImageTags, image_tags
from app.engines.interface import Engine, Limits
from app.engines.network_guard import AllowedTarget
from app.errors import Problem, SandgateError
from app.home import make_home, write_file
from app.ids_and_time import utc_now
from app.packages import PackageLocks, PackageStore
from app.sandboxes.assembly import make_sandboxes
from app.sandboxes.directory import Directory
from app.sandboxes.journal import Journal
from app.sandboxes.models import CreateSandbox
from app.sandboxes.planning import WORKSPACE_CAPABILITIES, Blueprint, check_known, plan_sandbox
from app.sandboxes.pod_clients import AgentClient
from app.sandboxes.pod_http import make_http_client
from app.sandboxes.sandbox_logs import SandboxLogs
from app.sandboxes.store import Store
from app.sandboxes.telemetry import Metrics
from app.sandboxes.tool_memory import ToolMemory
from app.sandboxes.warm_pool import PoolPlan, WarmPlans
from app.secrets import Secrets
from app.secrets.at_rest import check_stored_secrets
from app.settings import ROOT, Settings, SettingsError
from app.templates import TemplateService
from app.templates.base_images import BuildSettings, read_scripts
from app.templates.store import TemplateStore
from app.templates.uploads import Uploads
from app.vault import Vault
from app.volumes import Removals, VolumeContent, VolumePods, Volumes

if TYPE_CHECKING:
    from app.edge.workers import EdgeWorkers

_FIRST_KEY_FILE = "api-key"
_INSTALLATION_FILE = "installation"

_log = structlog.get_logger()


class StartError(SandgateError):
    """A part of the control plane did not come up."""


def make_app(settings: Settings, workers: EdgeWorkers | None = None) -> Edge:
    """The whole application; nothing is opened before its lifespan begins. Raises: CatalogError, EngineError.

    With `workers` it takes part only in what they pass on, and in what comes over TLS.
    """
    directory = Directory()
    catalog = make_catalog(settings)
    tags = sandbox_images(settings)

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if workers is not None:
                await stack.enter_async_context(workers)
            database = await stack.enter_async_context(opened_database(settings))
            accounts = Accounts(database)
            await ensure_first_key(accounts, settings.home)
            team = await accounts.default_team()
            assert team is not None
            engine = make_engine(settings, tags)
            stack.push_async_callback(engine.aclose)
            vault = make_vault(settings)
            importer = CatalogImporter(catalog, SourceStore(database, vault), now=utc_now)
            await importer.reload()
            http = await stack.enter_async_context(make_http_client())
            store = Store(database, vault)
            blueprint = make_blueprint(settings, tags)
            journal = Journal(database, now=utc_now)
            template_store = TemplateStore(database, vault)
            packages = make_packages(settings, engine, tags)
            templates = TemplateService(
                store=template_store,
                engine=engine,
                uploads=Uploads(settings.home / "template-files", largest_mib=settings.upload_limit_mib, now=utc_now),
                settings=_build_settings(settings, tags),
                in_use=store.template_in_use,
                images_of_forks=store.fork_images,
                prepare_server=lambda key, report: _prepare_server(key, report, catalog, packages),
                now=utc_now,
            )
            sandboxes = make_sandboxes(
                store=store,
                engine=engine,
                http=http,
                memory=ToolMemory(database, now=utc_now),
                journal=journal,
                packages=packages,
                templates=templates,
                directory=directory,
                catalog=catalog,
                blueprint=blueprint,
                warm_plans=_warm_plans(settings, templates, team.id, catalog, blueprint),
                now=utc_now,
            )
            metrics = Metrics(directory, AgentClient(http), now=utc_now)
            removals = Removals(database=database, engine=engine, now=utc_now)
            volume_pods = VolumePods(engine=engine, http=http, image=tags.workspace)
            api.state.parts = Parts(
                accounts=accounts,
                service=sandboxes.service,
                catalog=catalog,
                catalog_importer=importer,
                templates=templates,
                volumes=Volumes(
                    database=database, vault=vault, engine=engine, pods=volume_pods, removals=removals, now=utc_now
                ),
                volume_content=VolumeContent(volume_pods, http),
                secrets=Secrets(database=database, vault=vault, now=utc_now),
                metrics=metrics,
                logs=SandboxLogs(journal, engine, directory),
                settings=SettingsOfApi(
                    public_url=public_url(settings),
                    sandbox_domain=settings.sandbox_domain,
                    sandbox_size=(math.ceil(settings.cpus), settings.memory_mib),
                ),
            )
            await stack.enter_async_context(edge)
            await stack.enter_async_context(_in_background(journal.run(), "journal"))
            await stack.enter_async_context(_running(sandboxes.reconciler.run, "reconciler"))
            await stack.enter_async_context(_running(templates.builder.run, "template builder"))
            await stack.enter_async_context(_in_background(importer.watch(), "catalog watch"))
            await stack.enter_async_context(_in_background(metrics.run(), "metrics"))
            await stack.enter_async_context(_in_background(volume_pods.run(), "volume pods"))
            await stack.enter_async_context(_in_background(removals.run(), "removed volumes"))
            if settings.sandbox_domain is not None and settings.tls_port is not None:
                from app.tls import make_tls_listener  # noqa: PLC0415 - 2 MB that most have no use for

                await stack.enter_async_context(
                    make_tls_listener(settings, edge, domain=settings.sandbox_domain, port=settings.tls_port)
                )
            if workers is not None:
                await workers.admit(resume, directory.awaited)
            yield

    async def resume(sandbox_id: str) -> None:
        parts: Parts = api.state.parts
        await parts.service.resume_for_traffic(sandbox_id)

    api: FastAPI = make_api(lifespan)
    front = _telling_why(api)
    if workers is not None:
        directory.on_change(workers.tell)
        front = workers.in_step(front)
    edge = Edge(front, directory, sandbox_domain=settings.sandbox_domain, resume=resume)
    directory.on_cut_off(edge.drop)
    return edge


async def check_start(settings: Settings) -> None:
    """Find what would keep the application from starting, while it can be told in one line.

    Raises: SettingsError, DatabaseUnusableError, VaultError, CertificateError.
    """
    _check_egress_allow(settings)
    async with opened_database(settings) as database:
        await _check_owner(database, settings)
        await check_stored_secrets(database, make_vault(settings))
    if settings.sandbox_domain is not None and settings.tls_port is not None:
        from app.tls import check_certificate  # noqa: PLC0415 - as above

        check_certificate(settings, domain=settings.sandbox_domain)


async def _check_owner(database: Database, settings: Settings) -> None:
    """One home's server gives up the sandboxes of every other one, whose pods it cannot see."""
    name, home = installation_name(settings.home), settings.home
    owner = await claim_database(database, name)
    if owner != name:
        raise DatabaseUnusableError(
            f"The database {database.name} belongs to the installation {owner}, and {home} is the installation {name}:"
            " each would destroy the sandboxes of the other. Set SANDGATE_HOME to the home of that one, or"
            f" SANDGATE_DATABASE_URL to another database; if that home is lost, write {owner} into"
            f" {home / _INSTALLATION_FILE}, and what it had goes on here."
        )


def public_url(settings: Settings) -> str:
    """Without a trailing slash. Unless it is set, one that works on this machine."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return (settings.public_url or f"http://{host}:{settings.port}").rstrip("/")


def database_url(settings: Settings) -> str:
    return settings.database_url or f"sqlite+aiosqlite:///{settings.home / 'sandgate.db'}"


@asynccontextmanager
async def opened_database(settings: Settings) -> AsyncIterator[Database]:
    """The migrated database of this installation. Another process may be serving it."""
    make_home(settings.home)
    database = Database(database_url(settings))
    try:
        await database.migrate()
        yield database
    finally:
        await database.aclose()


def make_vault(settings: Settings) -> Vault:
    return Vault(settings.home / "encryption-key")


def make_catalog(settings: Settings) -> Catalog:
    """The shipped servers, then the operator's own in `<home>/catalog/servers`."""
    return Catalog.load(ROOT / "catalog" / "servers", settings.home / "catalog" / "servers")


def sandbox_images(settings: Settings) -> ImageTags:
    return image_tags(ROOT / "sandbox_images", base_image=settings.base_image, ca_bundle=settings.ca_bundle)


def make_engine(settings: Settings, tags: ImageTags, *, suffix: str = "") -> Engine:
    """`suffix` makes another installation of it, with nothing in common but packages and images."""
    _check_egress_allow(settings)
    return DockerEngine(
        installation=installation_name(settings.home) + suffix,
        runtime=settings.runtime,
        egress_allow=settings.egress_allow,
        guard_image=tags.base,
    )


def make_packages(settings: Settings, engine: Engine, tags: ImageTags) -> PackageStore:
    """The installed packages. Locks are looked for with the shipped catalog, and with the operator's own first."""
    return PackageStore(
        engine,
        image=tags.workspace,
        installer=ROOT / "sandbox_images" / "installer" / "install_package.py",
        locks=PackageLocks([ROOT / "catalog" / "locks", settings.home / "catalog" / "locks"]),
    )


def installation_name(home: Path) -> str:
    """Tells the pods of this installation from those of another on the same engine; made at first start."""
    file = home / _INSTALLATION_FILE
    if not file.exists():
        home.mkdir(parents=True, exist_ok=True)
        write_file(file, os.urandom(4).hex().encode())
    return file.read_text().strip()


async def ensure_first_key(accounts: Accounts, home: Path) -> str:
    """The first API key, in `<home>/api-key` (mode 0600); team and key are made if there are none yet."""
    file = home / _FIRST_KEY_FILE
    team = await accounts.default_team() or await accounts.create_team("default")
    if not await accounts.list_keys():
        file.unlink(missing_ok=True)  # it belongs to a database that is gone
    if not file.exists():
        key = await accounts.create_key(team, "first key")
        write_file(file, key.encode())
    return file.read_text().strip()


def _check_egress_allow(settings: Settings) -> None:
    for entry in settings.egress_allow:
        try:
            AllowedTarget.parse(entry)
        except ValueError as error:
            raise SettingsError(f"SANDGATE_EGRESS_ALLOW: {error}") from error


@asynccontextmanager
async def _running(run: Callable[[asyncio.Event], Coroutine[Any, Any, None]], name: str) -> AsyncIterator[None]:
    """Let something work in the background; it is ready then. Raises: SandgateError if it ends before."""
    ready = asyncio.Event()
    task = asyncio.create_task(run(ready), name=name)
    task.add_done_callback(lambda _: ready.set())
    try:
        await ready.wait()
        if task.done():
            raise _start_error(task, name)
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _start_error(task: asyncio.Task[None], name: str) -> SandgateError:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, SandgateError):
        return error
    reason = "it ended" if error is None else f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return StartError(f"The {name} could not be started: {reason}")


def _telling_why(api: ASGIApp) -> ASGIApp:
    """Of a start that fails for a reason of ours uvicorn logs just that, not the traceback that the framework gives."""

    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await api(scope, receive, send)
            return
        failed: list[Message] = []

        async def keep_failure(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                failed.append(message)
            else:
                await send(message)

        try:
            await api(scope, receive, keep_failure)
        except BaseException as error:
            for message in failed:
                await send({**message, "message": str(error)} if isinstance(error, SandgateError) else message)
            raise

    return told


@asynccontextmanager
async def _in_background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_log_death)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _log_death(task: asyncio.Task[None]) -> None:
    """Of something that was to work until it is cancelled."""
    if not task.cancelled():
        _log.error("background_task_ended", task=task.get_name(), exc_info=task.exception())


def make_blueprint(settings: Settings, tags: ImageTags) -> Blueprint:
    return Blueprint(
        workspace_image=tags.workspace,
        gateway_image=tags.gateway,
        workspace_limits=Limits(memory_mib=settings.memory_mib, cpus=settings.cpus, pids=settings.pids),
        server_start_timeout_s=settings.server_start_timeout_s,
        github_url=settings.github_url,
    )


def _build_settings(settings: Settings, tags: ImageTags) -> BuildSettings:
    return BuildSettings(
        namespace=f"sandgate-{installation_name(settings.home)}",
        workspace_image=tags.workspace,
        aliases=settings.image_aliases,
        limits=Limits(memory_mib=settings.memory_mib, cpus=settings.cpus, pids=settings.pids),
        capabilities=WORKSPACE_CAPABILITIES,
        timeout_s=settings.build_timeout_s,
        scripts=read_scripts(ROOT / "sandbox_images" / "templates"),
    )


async def _prepare_server(
    key: str, report: Callable[[str], None], catalog: Catalog, packages: PackageStore
) -> tuple[str, ...]:
    """Install the package of an MCP server; the images it needs. Raises: InvalidRequest (unknown), EngineError."""
    check_known([key], catalog)
    definition = catalog.find(key)
    if definition is None:
        return ()
    if definition.package is not None:
        await packages.ensure(key, definition.package, report)
    return tuple(definition.images)


def _warm_plans(
    settings: Settings, templates: TemplateService, team_id: str, catalog: Catalog, blueprint: Blueprint
) -> WarmPlans:
    """What the pods that wait are made by, as the templates are when it is asked."""
    missing: set[str] = set()

    async def plans() -> list[PoolPlan]:
        found = []
        for name, size in settings.pool.items():
            try:
                template = await templates.resolve(team_id, name)
            except Problem as problem:
                if name not in missing:
                    _log.warning("no_warm_pods", template=name, reason=problem.message)
                missing.add(name)
                continue
            missing.discard(name)
            request = CreateSandbox(template=name, timeout_s=0)
            plan = plan_sandbox(request, template, catalog, blueprint)
            found.append(PoolPlan(template=name, plan=plan, size=size))
        return found

    return plans
